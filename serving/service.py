"""One task's prediction service: a checked request in, a logged answer out. Knows no transport and no Ray.

The order of an answer: check, read features, pick each row's variant, score, commit to the log, answer; and only then
let the shadow score the same vectors.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import orjson

from contracts.clock import Clock
from contracts.errors import SkewlessError
from contracts.predictions import PredictionRow
from contracts.task import Task
from serving.admission import TooLate, Workers, in_time
from serving.answers import Answer, Shadow, composed, repeated
from serving.log_writer import LogUnavailable, LogWriter, Overloaded
from serving.metrics import Metrics
from serving.models import Live, Model
from serving.online import StoreBusy
from serving.outcomes import Outcomes
from serving.precomputed import Given, PredictionReader
from serving.requests import Asked, BadRequest, ClockMode, RequestSchema, SchemaError
from serving.scoring import Scored, rehearsed, score
from serving.shadows import Shadows
from serving.together import Part, Together
from serving.vectors import FeaturePlan, TransformFailed, Vectors

_log = logging.getLogger(__name__)
_STAGES = ("parse", "queue", "features", "scoring", "log")
_ROWS_ON_LOOP = 32  # a larger request, or one that waits for a server, leaves the event loop to the others


class NotDeployed(SkewlessError, LookupError):
    """No version of the task is being served."""


class FeaturesUnavailable(SkewlessError, ConnectionError):
    """The online store failed."""


_Computed = tuple[list[Scored], Shadow | None, tuple[float, float, float]]
"""Parts, what is left for the shadow, and when it was begun, had its features, had its scores."""


class PredictionService:
    """Answers one task's requests.

    Args:
        task: the policy.
        plan: of the task's own feature service; it says what a request carries.
        writer: the prediction log.
        clock: says when a row is asked in `system` mode, and when it was answered.
        mode: `system`, or `request` for replays, in which each row carries its instant and is answered at it.
        metrics: where to count.
        outcomes: where to count how requests end while a version climbs.
        workers: threads for what would hold up the event loop.
        precomputed: of a batch task's predictions; None computes each answer when it is asked for.

    Raises:
        SchemaError: task and feature service disagree about keys or request fields.
    """

    def __init__(
        self,
        task: Task,
        plan: FeaturePlan,
        writer: LogWriter,
        *,
        clock: Clock,
        mode: ClockMode,
        metrics: Metrics,
        outcomes: Outcomes,
        workers: Workers,
        precomputed: FeaturePlan | None = None,
    ) -> None:
        self.task = task
        self.schema = RequestSchema(task, plan.inputs, mode)
        self.writer = writer
        self._precomputed = PredictionReader(task, precomputed, self.schema.fields) if precomputed else None
        self._live: Live | None = None
        self._together = Together(self._given)
        self._under_way = 0
        self._clock = clock
        self._metrics = metrics
        self._outcomes = outcomes
        self._workers = workers
        self._seconds = {each: metrics.stages.labels(task.name, each) for each in _STAGES}
        self.recent: deque[tuple[datetime, dict[str, int | None]]] = deque(maxlen=256)
        """Instant and view times of the first row of each of the last requests."""
        for key in task.serving.refuse_unknown:
            if not plan.views_keyed_by(key):
                raise SchemaError(
                    f"Task {task.name!r}: serving.refuse_unknown names {key!r}, but no view of {plan.service!r} is "
                    "keyed by it alone, so nothing says which values exist.",
                    hint="remove it from refuse_unknown, or add such a view to the service.",
                )
        self._shadows = Shadows(f"shadow-{task.name}", self._score_shadow, metrics.shadow_dropped.labels(task.name).inc)

    @property
    def live(self) -> Live | None:
        """The deployment that answers now."""
        return self._live

    def swap(self, live: Live) -> None:
        """Let another deployment answer from the next request on; requests under way finish with theirs."""
        self._live = live
        self._metrics.generation.labels(self.task.name).set(live.deployment.generation)

    async def predict(self, content: bytes | Mapping[str, Any], deadline: float | None = None) -> Answer:
        """Answer one request, given as JSON or as what that JSON holds; its rows are on disk when this returns.

        Args:
            content: the request.
            deadline: when its caller gives up, by `time.perf_counter`.

        Raises:
            BadRequest: the request is wrong; says where and how.
            TooLate: at its deadline it was still to be computed, or logged; neither is done any more.
            NotDeployed, FeaturesUnavailable, Overloaded, LogUnavailable: not answered now; nothing is logged.
            TransformFailed, ScoringFailed: an on-demand view or the model cannot answer this.
        """
        began = time.perf_counter()
        live = self._live
        if live is None:
            raise NotDeployed(
                f"Task {self.task.name!r} has no version deployed.",
                hint=f"train one: `skewless retrain {self.task.name}`.",
            )
        asked = self.schema.parse(content, self._clock.now())
        parsed = time.perf_counter()
        chosen = self._chosen(live, asked)
        self._under_way += 1
        try:
            parts, shadow, marks = await self._computed(live, asked, chosen, began, deadline)
            in_time(deadline)
            said = composed(self.task, asked, parts)
            first = await self._logged(asked, parts)
        except (BadRequest, TooLate):  # the caller's doing, not the version's
            raise
        except Exception:
            variants = {"canary" if i in chosen else "champion" for i in range(len(asked.cases))}
            self._count(live, asked, variants, failed=True)
            raise
        finally:
            self._under_way -= 1
        if not first:
            earlier = await self._workers.run(self.writer.find, asked.request_id)
            return Answer(repeated(self.task, asked, earlier))
        done = time.perf_counter()
        slow = 1000 * (done - began) > self.task.budget.p99_ms
        self._count(live, asked, {part.variant for part in parts}, slow=slow)
        stages = tuple(zip(_STAGES, (began, parsed, *marks), (parsed, *marks, done), strict=True))
        return Answer(said, parts, shadow, stages)

    def finish(self, answer: Answer) -> None:
        """Count an answer that is out and hand the shadow its part. Never waits and never fails."""
        for name, start, end in answer.stages:
            self._seconds[name].observe(end - start)
        for part in answer.parts:
            self._metrics.predictions.labels(self.task.name, part.variant, part.model.version).inc(len(part.rows))
            for row in part.rows:
                for reason in row.degraded:
                    self._metrics.degraded.labels(self.task.name, reason).inc()
        if answer.parts:
            first = answer.parts[0].rows[0]
            self.recent.append((first.event_timestamp, first.view_times))
        if answer.shadow is not None:
            self._shadows.put(answer.shadow)

    def close(self) -> None:
        """Let the shadow finish its backlog and the log close its segments."""
        self._shadows.close()
        self.writer.close()

    async def _computed(
        self, live: Live, asked: Asked, chosen: Sequence[int], began: float, deadline: float | None
    ) -> _Computed:
        """Compute here where that is quick, in a thread of its own where it may wait."""
        reader = self._precomputed or live.champion.plan
        if not reader.waits and len(asked.cases) <= _ROWS_ON_LOOP:
            together = None
            if self._under_way > 1 and self._precomputed is None:
                together = await self._together.part(live.champion, asked)
            with suppress(StoreBusy):
                return self._compute(live, asked, chosen, began, deadline, together)
        return await self._workers.run(self._compute, live, asked, chosen, began, deadline)

    def _compute(
        self,
        live: Live,
        asked: Asked,
        chosen: Sequence[int],
        began: float,
        deadline: float | None,
        together: Part | None = None,
    ) -> _Computed:
        started = time.perf_counter()
        in_time(deadline)
        deployment, champion, challenger = live.deployment, live.champion, live.challenger
        given, answers = (together.given, together.answers) if together else (self._given(champion, asked), None)
        if self._precomputed is None:
            self._refuse_unknown(champion.plan, asked, given.vectors)
        features_done = time.perf_counter()
        taken = frozenset(chosen)
        others = mirrored = [i for i in range(len(asked.cases)) if i not in taken]
        shared = challenger is not None and self._shared(champion, challenger)
        answered_at = self._answered_at()
        parts = []
        if challenger is not None and chosen:
            try:
                same = given if shared else self._given(challenger, asked)
                parts.append(score(challenger, "canary", asked, same, chosen, began=began, answered_at=answered_at))
            except StoreBusy:
                raise
            except Exception as error:  # the champion answers for a challenger that cannot
                self._count(live, asked, ("canary",), failed=True)
                _log.warning("canary of task %s: %s", self.task.name, error)
                others = list(range(len(asked.cases)))
        if others:
            parts.append(
                score(champion, "champion", asked, given, others, began=began, answered_at=answered_at, answers=answers)
            )
        scored = time.perf_counter()
        shadow = None
        if challenger is not None and mirrored and deployment.stage in ("shadow", "canary"):
            spent_ms = 1000 * (features_done - began)
            shadow = Shadow(challenger, asked, given if shared else None, mirrored, spent_ms, deployment.generation)
        return parts, shadow, (started, features_done, scored)

    def _chosen(self, live: Live, asked: Asked) -> list[int]:
        """Rows the challenger answers."""
        deployment, challenger = live.deployment, live.challenger
        if challenger is None or deployment.stage != "canary":
            return []
        return [i for i in range(len(asked.cases)) if self._is_canary(asked, i, challenger.version, deployment.share)]

    def _count(
        self, live: Live, asked: Asked, variants: Iterable[str], *, failed: bool = False, slow: bool = False
    ) -> None:
        """Note how a request ended for those who had a part in it, while a version climbs."""
        if live.challenger is not None and not asked.rehearsal:
            for variant in variants:
                self._outcomes.count(self.task.name, live.deployment.generation, variant, failed=failed, slow=slow)

    def _shared(self, a: Model, b: Model) -> bool:
        """Whether two models are given the same."""
        return self._precomputed is None and a.plan is b.plan and a.features == b.features

    def _given(self, model: Model, asked: Asked) -> Given:
        try:
            if self._precomputed is not None:
                given = self._precomputed.read(model, asked)
            else:
                vectors = model.plan.vectors(asked.columns, asked.at, model.bundle.metadata.features)
                given = Given(vectors, degraded=vectors.stood_in.reasons, fallback=vectors.stood_in.refused)
        except (StoreBusy, TransformFailed):
            raise
        except Exception as error:  # a store of somebody else's making
            told = error.fact if isinstance(error, SkewlessError) else f"{type(error).__name__}: {error}."
            raise FeaturesUnavailable(
                f"Features of task {self.task.name!r} cannot be read: {told}",
                hint=getattr(error, "hint", ""),
            ) from error
        for (view, reason), count in given.vectors.withheld().items():
            self._metrics.withheld.labels(self.task.name, view, reason).inc(count)
        return given

    def _refuse_unknown(self, plan: FeaturePlan, asked: Asked, vectors: Vectors) -> None:
        for key in self.task.serving.refuse_unknown:
            views = plan.views_keyed_by(key)
            if any("not_found" not in vectors.statuses[view] for view in views):
                continue
            for i, value in enumerate(asked.columns[key]):
                if views and not any(vectors.known(view, i) for view in views):
                    raise BadRequest(422, f"rows[{i}].{key}", value, "a value that the online store knows")

    def _is_canary(self, asked: Asked, i: int, version: int, share: float) -> bool:
        """Whether row `i` is among the challenger's keys: the same ones while it climbs, and more at each step."""
        key = orjson.dumps([version, *(asked.inputs[i][name] for name in self.task.spine.keys)])
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) < share * 2**64

    async def _logged(self, asked: Asked, parts: Sequence[Scored]) -> bool:
        """Commit the rows; False when an earlier request of the same id was answered."""
        groups: dict[Any, list[PredictionRow]] = {}
        for part in parts:
            groups.setdefault(part.model.features, []).extend(part.rows)
        waits = []
        for features, rows in groups.items():
            answered, once = len(rows), asked.once
            if asked.rehearsal:
                rows, answered, once = rehearsed(rows), 0, False
            waits.append(self.writer.submit(rows, features, answered=answered, once=once))
        if not all(each.done() for each in waits):
            committed = [await asyncio.wrap_future(each) for each in waits]
            return all(committed)
        await asyncio.sleep(0)  # an asynchronous log waits for nothing, and others could not join: see `Together`
        return all(each.result() for each in waits)

    def _score_shadow(self, work: Shadow) -> None:
        try:
            began = time.perf_counter()
            given = work.given or self._given(work.model, work.asked)
            sound = set(given.usable())  # a fallback says nothing about the version
            usable = [i for i in work.positions if i in sound]
            if not usable:
                return
            scored = score(
                work.model,
                "shadow",
                work.asked,
                given,
                usable,
                began=began,
                answered_at=self._answered_at(),
                spent_ms=work.features_ms,
            )
            rows = rehearsed(scored.rows) if work.asked.rehearsal else scored.rows
            self.writer.submit(rows, work.model.features, answered=0)
            self._metrics.predictions.labels(self.task.name, "shadow", work.model.version).inc(len(scored.rows))
            self._count_shadow(work, failed=False)
        except Exception as error:  # a shadow that fails must not be felt
            self._metrics.shadow_dropped.labels(self.task.name).inc()
            if not isinstance(error, Overloaded | LogUnavailable):  # the log's troubles are nobody's fault
                self._count_shadow(work, failed=True)
            _log.warning("shadow of task %s: %s", self.task.name, error)

    def _count_shadow(self, work: Shadow, *, failed: bool) -> None:
        if not work.asked.rehearsal:
            self._outcomes.count(self.task.name, work.generation, "shadow", failed=failed)

    def _answered_at(self) -> datetime | None:
        """None where a row is answered at the instant it is asked at."""
        return None if self.schema.clock == "request" else self._clock.now()
