"""Live through history as if it were happening: materialize on schedule, ask over HTTP, let releases climb."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from contracts.clock import VirtualClock
from contracts.spine import read_spine
from contracts.task import Task
from loop.climb import Climb
from loop.features import Materializer
from loop.predict import Jobs
from loop.terminal import Steps
from loop.traffic import Caller, request_rows


@dataclass
class Live:
    """One task's traffic in virtual time; `until` moves it on."""

    task: Task
    clock: VirtualClock
    caller: Caller
    materializer: Materializer
    climb: Climb
    jobs: Jobs
    step: timedelta = timedelta(hours=1)
    written: int = 0
    """Rows written to the online store so far."""

    def until(self, end: datetime, steps: Steps) -> None:
        """Serve every case asked about from the clock's instant up to `end`.

        The cases of one step are asked after the step's boundary was materialized and its batch job run, in order of
        their instants.
        """
        start = self.clock.now()
        spine = read_spine(self.task, start=start, end=end, known_at=start)
        stamps = spine[self.task.spine.event_timestamp]
        with steps.bar("serving", int((end - start) / self.step)) as advance:
            boundary = start
            while boundary < end:
                self.written += self.materializer.to(boundary)
                self.jobs.at(boundary)
                following = min(boundary + self.step, end)
                within = pc.and_(
                    pc.greater_equal(stamps, pa.scalar(boundary, stamps.type)),
                    pc.less(stamps, pa.scalar(following, stamps.type)),
                )
                asked = request_rows(self.task, spine.filter(within))
                self.caller.ask_each(asked)
                boundary = following
                self.clock.advance_to(boundary)
                self.climb.after_hour(boundary, asked)
                advance(f"{boundary:%F %H:%M}")
