"""One replica composed: tasks, features, models, logs and the HTTP side, from a project folder."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

from contracts.clock import Clock
from contracts.errors import SkewlessError
from contracts.locations import REPLICAS
from contracts.settings import locate
from contracts.state import open_for_reading, open_state
from contracts.task import Task, load_task
from serving.access import Access, AccessSettings
from serving.access_gate import CONSOLE, Asgi, Gate
from serving.admission import Admission, Workers
from serving.breaker import Breaker
from serving.collectors import LogCollector, QueueCollector, ServiceCollector, StoreCollector
from serving.front import Front
from serving.log_writer import LogWriter
from serving.logs import stop_writing, write_to
from serving.metrics import Metrics
from serving.models import Models, Watcher
from serving.mount import Mount, load
from serving.outcomes import Outcomes
from serving.protocol import Protocol
from serving.requests import ClockMode
from serving.service import PredictionService
from serving.standins import check
from serving.tracing import tracing_of
from serving.v2_grpc import V2Grpc
from serving.vectors import FeaturePlan


class NothingToServe(SkewlessError, LookupError):
    """A project without the tasks that were asked for."""


class DeadThread(SkewlessError, RuntimeError):
    """A replica that can no longer answer."""


class Replica:
    """Everything one serving process holds. `asgi` answers; `close` drains it.

    Args:
        project: folder with `tasks/`.
        data: the data root.
        tasks: names to serve; all of the project when empty.
        clock: says what time it is.
        mode: `system`, or `request` for replays.
        grpc: `host:port` where gRPC listens too; nowhere when empty.
        environment: where tokens and traces are configured.
        echoes: whether answers carry the request's id; what stands around the replica may do so itself.
        console: `module:function` of the application below `/console`, where administration asks for a token.
    """

    def __init__(
        self,
        project: Path,
        data: Path,
        tasks: Sequence[str],
        clock: Clock,
        mode: ClockMode,
        grpc: str = "",
        *,
        environment: Mapping[str, str] | None = None,
        echoes: bool = True,
        console: str = "",
    ) -> None:
        from serving.batch_view import PredictionView
        from serving.plan import compile_plan, open_repository

        self.access = Access(AccessSettings.of(environment or {}))
        self._tracing = tracing_of(environment or {})
        locations = locate(project, data)
        self._lock = _shared_lock(locations.lock(REPLICAS))
        metrics = Metrics()
        self._outcomes = Outcomes(open_state(locations.state_url))  # creates what is missing
        loaded = _load(project, tasks)
        self._workers = Workers()
        open_repository = cache(open_repository)
        self.services: dict[str, PredictionService] = {}
        models: dict[str, Models] = {}
        self.breakers: dict[str, Breaker] = {}
        for task in loaded:
            policy = task.degradation
            breaker = Breaker(policy.breaker_failures, policy.breaker_rest.total_seconds())

            def compile_service(service: str, task: Task = task, breaker: Breaker = breaker) -> FeaturePlan:
                timeout = task.degradation.read_timeout.total_seconds()
                plan = compile_plan(open_repository(task.feature_repo), service, timeout=timeout)
                return plan.guarded(task.degradation, breaker)

            models[task.name] = Models(task, compile_service)
            plan = models[task.name].plan(task.feature_service)
            batch = task.serving_mode[0] == "batch"
            precomputed = PredictionView(task, locations).plan().guarded(policy, breaker) if batch else None
            check(policy, (precomputed or plan).views, task.name)
            self.breakers[task.name] = breaker
            self.services[task.name] = PredictionService(
                task,
                plan,
                LogWriter(
                    locations.predictions(task.name),
                    started=clock.now(),
                    durable=task.serving.log == "durable",
                    keep=task.serving.log_keep,
                ),
                clock=clock,
                mode=mode,
                metrics=metrics,
                outcomes=self._outcomes,
                workers=self._workers,
                precomputed=precomputed,
            )
        self.admission = Admission({task.name: task.serving.max_in_flight for task in loaded})
        metrics.watch(
            LogCollector({name: service.writer for name, service in self.services.items()}),
            StoreCollector(self.breakers),
            QueueCollector(self.admission, self._workers, self.access),
            ServiceCollector(self.services),
        )
        self._log = write_to(data / "logs")
        reading = open_for_reading(locations.state_url)
        self._watcher = Watcher(reading, models, lambda name, live: self.services[name].swap(live))
        self._watcher.look()
        self._watcher.start()
        front = Front(self.services, metrics, self.admission, self._tracing)
        self.grpc = V2Grpc(front, grpc, self.access) if grpc else None
        self.asgi: Asgi = Protocol(front, self._watcher.errors, metrics, self.grpc, echoes=echoes)
        if console and self.access.guards("administration"):
            self.asgi = Mount(self.asgi, CONSOLE, load(console, project, data))
        if not self.access.open:
            self.asgi = Gate(self.asgi, self.access)

    def check(self) -> None:
        """Raise DeadThread when a thread that answers need has ended."""
        dead = [] if self._watcher.is_alive() else ["deployment watcher"]
        dead += [f"log of {name}" for name, service in self.services.items() if not service.writer.is_alive()]
        if dead:
            raise DeadThread(f"Thread of the {', '.join(dead)} has ended.", hint="the replica must be replaced.")

    def drain(self) -> None:
        """Answer what comes, and say to whoever balances or connects that it should go elsewhere."""
        self.admission.draining = True

    def close(self) -> None:
        """Stop following deployments, finish shadows, commit and compact the logs."""
        self.drain()
        self._watcher.stop()
        self._workers.close()
        for service in self.services.values():
            service.close()
        self._outcomes.close()
        if self._tracing is not None:
            self._tracing.close()
        stop_writing(self._log)
        self._lock.close()


def _shared_lock(path: Path) -> IO[str]:
    """The system lets go of it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a")
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _load(project: Path, names: Sequence[str]) -> list[Task]:
    folder = project / "tasks"
    wanted = list(names) or sorted(path.stem for path in folder.glob("*.toml"))
    if not wanted:
        raise NothingToServe(f"No task file in {folder}.", hint="give the project folder that holds tasks/*.toml.")
    return [load_task(folder / f"{name}.toml") for name in wanted]
