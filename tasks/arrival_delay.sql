-- One row per scheduled flight: what is known when it is asked about, and how late it reached its gate.
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
    -- Minutes; below 0 for an early arrival, null for a flight that was cancelled or diverted.
    a.arr_delay,
    -- Gate times are reported within the hour.
    a.actual_arrival + interval 1 hour as label_known_at
from schedules s
left join arrivals a using (flight_id)
