-- One row per scheduled flight: what is known when it is asked about, and what came of it.
select
    s.flight_id,
    s.origin,
    s.dest,
    s.carrier,
    s.tailnum,
    s.route,
    s.scheduled_departure,
    s.scheduled_arrival,
    s.scheduled_departure - interval 2 hour as asked_at,
    -- Null for a flight that was cancelled or diverted: it never reached its gate.
    case when a.arr_delay > 15 then 1 when a.arr_delay is not null then 0 end as late,
    -- Gate times are reported within the hour.
    a.actual_arrival + interval 1 hour as label_known_at,
    case
        when local.hour < 8 then '1 before 8'
        when local.hour < 12 then '2 8 to 12'
        when local.hour < 16 then '3 12 to 16'
        when local.hour < 20 then '4 16 to 20'
        else '5 after 20'
    end as hour_band
from schedules s
left join arrivals a using (flight_id)
cross join lateral (select extract(hour from timezone('America/New_York', s.scheduled_departure)) as hour) local
