select code, event, known, c0, c1 from (select k.code as code, epoch_us(s."ts") as event, greatest(epoch_us(s."ts"), epoch_us(s."created")) as known, epoch_us(s."created") as created, s."n" as c0, s."x" as c1
from (select * from read_parquet(['/data/v/rows.parquet'], hive_types_autocast = false) s
qualify s."n" is null or s."b" is null or row_number() over (partition by s."n", s."b" order by greatest(epoch_us(s."ts"), epoch_us(s."created")), epoch_us(s."ts"), s) = 1) s
join keys_0 k on cast(s."a" as bigint) = k.k0 and cast(s."b" as varchar) = k.k1
where s."ts" < timestamptz '2013-02-01 00:00:00.005001+00' and s."ts" >= timestamptz '2013-02-01 00:00:00.004000+00' and (s."created" is null or s."created" < timestamptz '2013-02-01 00:00:00.005001+00'))
