select code, event, c0
from (select k.code as code, epoch_us(s."ts") as event, epoch_us(s."ts") as known, null as created, s."x" as c0
from read_parquet(['/data/v/part.parquet']) s
join keys_0 k on cast(s."a" as bigint) = k.k0 and cast(s."b" as varchar) = k.k1
where s."ts" < timestamptz '2013-01-01 00:00:00.000002+00' and s."ts" >= timestamptz '2013-01-01 00:00:00+00')
