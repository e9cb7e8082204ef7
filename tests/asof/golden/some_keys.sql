select k.code as code, epoch_us(s."ts") as event, epoch_us(s."ts") as known, null as created, s."x" as c0
from read_parquet(['/data/v/part.parquet']) s
join (select * from keys_0 where code between 3 and 5) k on cast(s."a" as bigint) = k.k0 and cast(s."b" as varchar) = k.k1
where s."ts" < timestamptz '2013-01-01 00:00:00.000001+00'
