select code, event, known, c0
from (select k.code as code, epoch_us(s."ts") as event, greatest(epoch_us(s."ts"), epoch_us(s."created")) as known, epoch_us(s."created") as created, s."x" as c0
from rows_0 s
join keys_1 k on cast(s."a" as bigint) = k.k0 and cast(s."b" as varchar) = k.k1
where s."ts" < timestamptz '2013-02-01 00:00:00.005001+00' and (s."created" is null or s."created" < timestamptz '2013-02-01 00:00:00.005001+00'))
