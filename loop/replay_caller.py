"""The application of a replay: asks the prediction service in this process, an hour of cases a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine

from contracts.clock import VirtualClock
from contracts.locations import Locations
from contracts.task import Task
from loop.replay_window import Window
from loop.traffic import Account, Caller
from serving.admission import Workers
from serving.log_writer import LogWriter
from serving.metrics import Metrics
from serving.models import Models
from serving.outcomes import Outcomes
from serving.requests import BadRequest
from serving.rollout_state import Deployment
from serving.service import PredictionService
from serving.vectors import FeaturePlan

HOUR = timedelta(hours=1)
_SHADOW_SECONDS = 60.0


class InProcess(Caller):
    """Asks one task's service without any transport, and waits for its shadow: what is logged depends on no timing.

    Args:
        task: whose.
        locations: where its log goes.
        plan: what answers for its feature service.
        window: the cases.
        deployment: gives what serves at an instant.
        engine: the state to count outcomes in; closed with this.
        started: names the log's files.
    """

    def __init__(
        self,
        task: Task,
        locations: Locations,
        plan: FeaturePlan,
        window: Window,
        deployment: Callable[[], Deployment],
        engine: Engine,
        started: datetime,
    ) -> None:
        self.account = Account()
        self._window, self._deployment = window, deployment
        self._place: Callable[[slice], None] = getattr(plan, "place", lambda rows: None)
        self._models = Models(task, lambda service: plan)
        self._writer = LogWriter(locations.predictions(task.name), started=started)
        self._outcomes, self._workers = _Outcomes(engine), Workers(threads=1)
        self._service = PredictionService(
            task,
            plan,
            self._writer,
            clock=VirtualClock(started),
            mode="request",
            metrics=Metrics(),
            outcomes=self._outcomes,
            workers=self._workers,
        )
        self._most = task.serving.max_rows
        self._loop = asyncio.new_event_loop()
        self._generation = 0
        self._shadows, self._shadow_rows = 0, 0
        self._hour = slice(0, 0)
        self.wait_for(0)

    def wait_for(self, generation: int, seconds: float = 30.0) -> None:
        """Let the service follow the deployment."""
        now = self._deployment()
        if now.generation != self._generation:
            self._service.swap(self._models.prepare(now))
            self._generation = now.generation

    def ask_hour(self, rows: slice) -> list[dict[str, Any]]:
        """Ask about these cases of the window, and return the requests' rows. What is answered is on disk then."""
        self._hour = rows
        asked = self._window.requests(rows)
        for first in range(0, len(asked), self._most):
            self._ask(asked[first : first + self._most], rows.start + first)
        return asked

    def ask(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One request about the last cases of the hour once more."""
        return self._ask(rows, self._hour.stop - len(rows))

    def close(self) -> None:
        """Finish the shadows and close the log and the state."""
        self._workers.close()
        self._service.close()
        self._outcomes.close()
        self._loop.close()

    def _ask(self, rows: list[dict[str, Any]], first: int) -> list[dict[str, Any]]:
        self._place(slice(first, first + len(rows)))
        try:
            answer = self._loop.run_until_complete(self._service.predict({"rows": rows}))
        except BadRequest as error:
            if len(rows) > 1:  # one case that cannot be asked about is refused alone, as it would be live
                return [each for at, row in enumerate(rows) for each in self._ask([row], first + at)]
            self.account.statuses[error.status] += 1
            self.account.refusals[error.fact] += 1
            return []
        if answer.shadow is not None:
            self._shadows += 1
            self._shadow_rows += len(answer.shadow.positions)
            self._service.finish(answer)
        self._settle()
        predictions: list[dict[str, Any]] = answer.payload["predictions"]
        self.account.statuses[200] += 1
        self.account.answered_rows += len(predictions)
        self.account.variants.update(each["variant"] for each in predictions)
        return predictions

    def _settle(self) -> None:
        """Return when every shadow is logged and counted, and the state knows of it."""
        deadline = time.monotonic() + _SHADOW_SECONDS
        while self._outcomes.shadows < self._shadows or self._writer.counters.shadow < self._shadow_rows:
            if time.monotonic() > deadline:
                missing = self._shadow_rows - self._writer.counters.shadow
                raise TimeoutError(f"{missing} shadow rows were not logged within {_SHADOW_SECONDS:.0f} s.")
            time.sleep(0.0005)
        self._outcomes.tell()


class _Outcomes(Outcomes):
    """Counts that are told when they are asked for, and by no clock."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, every=3600)
        self.shadows = 0

    def count(self, task: str, generation: int, variant: str, *, failed: bool, slow: bool = False) -> None:
        super().count(task, generation, variant, failed=failed, slow=slow)
        self.shadows += variant == "shadow"
