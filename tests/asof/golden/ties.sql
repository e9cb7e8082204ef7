with moments as materialized (
select * from ties_1)
select m.row, m.event, s.c0
from moments m
join (select k.code as code, epoch_us(s."ts") as event, greatest(epoch_us(s."ts"), epoch_ns(s."created") // 1000) as known, epoch_ns(s."created") // 1000 as created, s."x" as c0, s."n" as c1, s."x" as c2
from read_parquet(['/data/v/part.parquet']) s
join (select * from keys_0 where code in (select code from ties_1)) k on cast(s."a" as bigint) = k.k0 and cast(s."b" as varchar) = k.k1
where s."ts" < timestamptz '2013-01-01 00:00:00.000002+00' and s."ts" >= timestamptz '2013-01-01 00:00:00+00' and (s."created" is null or s."created" < timestamp '2013-01-01 00:00:00.000002')) s on m.code = s.code and m.event = s.event and m.known = s.known
qualify row_number() over (partition by m.row order by s.created desc nulls last, s.c1 desc nulls last, s.c2 desc nulls last) = 1
