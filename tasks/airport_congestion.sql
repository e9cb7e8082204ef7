-- One row per airport and hour with at least ten departures planned: will they leave late?
select
    strftime(hour, origin || '-%Y%m%dT%HZ') as case_id,
    origin,
    hour,
    planned,
    -- Asked as the hour begins.
    hour as asked_at,
    -- Of the flights that left (no other counts), three in ten left more than 15 minutes late.
    case when late_share >= 0.3 then 1 when late_share is not null then 0 end as congested,
    -- The hour is over, the last of them has left, and departures are reported within the hour.
    case when all_left is not null then greatest(all_left, hour + interval 1 hour) + interval 1 hour end
        as label_known_at,
    case
        when local_hour < 8 then '1 before 8'
        when local_hour < 12 then '2 8 to 12'
        when local_hour < 16 then '3 12 to 16'
        when local_hour < 20 then '4 16 to 20'
        else '5 after 20'
    end as hour_band
from (
    select
        s.origin,
        date_trunc('hour', s.scheduled_departure) as hour,
        extract(hour from timezone('America/New_York', date_trunc('hour', s.scheduled_departure))) as local_hour,
        count(*) as planned,
        avg(d.late) as late_share,
        max(d.created) as all_left
    from schedules s
    left join departures d using (flight_id)
    group by all
)
where planned >= 10
