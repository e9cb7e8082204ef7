with moments as materialized (
select p.row, p.code, s.event, s.known
from points_1 p
asof join (select code, event, event as known from (select k.code as code, epoch_us(s."ts") as event, epoch_us(s."ts") as known, null as created
from read_parquet(['/data/v/part.parquet']) s
join keys_0 k on cast(s."a" as bigint) = k.k0 and cast(s."b" as varchar) = k.k1
where s."ts" < timestamptz '2013-01-01 00:00:00.000002+00' and s."ts" >= timestamptz '2013-01-01 00:00:00+00')) s on p.code = s.code and p.at >= s.known)
select m.row, m.event, s.c0
from moments m
join (select k.code as code, epoch_us(s."ts") as event, epoch_us(s."ts") as known, null as created, s."x" as c0
from read_parquet(['/data/v/part.parquet']) s
join keys_0 k on cast(s."a" as bigint) = k.k0 and cast(s."b" as varchar) = k.k1
where s."ts" < timestamptz '2013-01-01 00:00:00.000002+00' and s."ts" >= timestamptz '2013-01-01 00:00:00+00') s on m.code = s.code and m.event = s.event and m.known = s.known
