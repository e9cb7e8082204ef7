select code, event, known, c0, c1
from (select k.code as code, epoch_us(s."ts") as event, greatest(epoch_us(s."ts"), epoch_ns(s."created") // 1000) as known, epoch_ns(s."created") // 1000 as created, s."x" as c0, s."n" as c1
from read_parquet(['/data/v/part.parquet']) s
join keys_0 k on cast(s."a" as bigint) = k.k0 and cast(s."b" as varchar) = k.k1
where s."ts" < timestamptz '2013-01-01 00:00:00.000002+00' and s."ts" >= timestamptz '2013-01-01 00:00:00+00' and (s."created" is null or s."created" < timestamp '2013-01-01 00:00:00.000002'))
