select code, event, c0
from (select k.code as code, epoch_us(s."ts") as event, epoch_us(s."ts") as known, null as created, s."x" as c0
from (select * rename ("x" as "x_in_files", "n" as "x") from read_parquet(['/data/v/month=00/part.parquet', '/data/v/month=01/part.parquet'], hive_types_autocast = false)) s
join keys_0 k on cast(s."a" as bigint) = k.k0 and cast(s."b" as varchar) = k.k1
where s."ts" < timestamptz '2013-02-01 00:00:00.005001+00')
