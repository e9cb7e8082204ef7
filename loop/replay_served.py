"""A month of a policy through the online path: every hour materialized, read, answered by the model of that hour.

The policy was lived on vectors of the training path. Here the same requests meet the same releases at the online store,
and two things must come out the same: each vector as the audit recomputes it, and each answer as the policy logged it.
"""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from contracts.locations import Locations
from contracts.predictions import balance, read_predictions
from contracts.state import open_state
from loop.features import Materializer, rehearse
from loop.replay_caller import HOUR, InProcess
from loop.replay_life import Scene
from serving.rollout_state import Deployment, RolloutEvent

if TYPE_CHECKING:
    from monitoring.skew_report import SkewExample

_LONG_AGO = datetime(1, 1, 2, tzinfo=UTC)
_VARIANTS = ("champion", "canary", "shadow")
_ANSWER = ("variant", "version", "score", "decision", "quantiles")


@dataclass(frozen=True, slots=True)
class ServedMonth:
    """What came of a month."""

    start: str
    end: str
    hours: int
    materialized: int
    """Rows written to the online store."""
    answered: int
    vectors: int
    """Rows that the audit recomputed."""
    values: int
    """Values of them that were judged."""
    mismatches: int
    """Values that differ from the training path's."""
    not_judged: int
    answers: int
    """Scored rows, shadows included, held against the policy's own log."""
    answers_differ: int
    examples: tuple[dict[str, Any], ...]
    """Of mismatches."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"examples": list(self.examples)}


def serve_month(
    scene: Scene, history: Sequence[RolloutEvent], log: Path, scratch: Path, *, start: datetime, end: datetime
) -> ServedMonth:
    """Serve [start, end) as a policy did.

    Args:
        scene: the replay.
        history: the policy's releases.
        log: its prediction log.
        scratch: a folder of this month's own; emptied first, and removed at the end.
        start: an hour at which the policy had something deployed.
        end: exclusive.
    """
    from monitoring.skew import audit
    from serving.plan import compile_plan

    task = scene.task
    shutil.rmtree(scratch, ignore_errors=True)
    store, locations = rehearse(task, scratch / "features"), Locations(scratch / "data")
    releases = _Releases(history, start)
    plan = compile_plan(store, task.feature_service)
    engine = open_state(locations.state_url)
    caller = InProcess(task, locations, plan, scene.window, releases.now, engine, start)
    materializer = Materializer(store, _LONG_AGO, views=[view.table for view in plan.views], still=True)
    boundary, hours, written = start, 0, 0
    while boundary < end:
        following = min(boundary + HOUR, end)
        written += materializer.to(boundary)
        releases.at = boundary
        caller.wait_for(0)
        caller.ask_hour(scene.window.rows(boundary, following))
        boundary, hours = following, hours + 1
    caller.close()
    kept = balance(locations.predictions(task.name))
    skew = audit(task, locations, store=store, variants=_VARIANTS)
    served = read_predictions(locations.predictions(task.name), variants=_VARIANTS, vectors=False)
    lived = read_predictions(log, start=start, end=end, variants=_VARIANTS, vectors=False)
    lived = lived.filter(lived["case_id"].is_valid())  # a drill names no case
    found = ServedMonth(
        start=start.isoformat(),
        end=end.isoformat(),
        hours=hours,
        materialized=written,
        answered=kept.logged,
        vectors=skew.rows,
        values=skew.checked,
        mismatches=skew.mismatches,
        not_judged=skew.not_judged.total(),
        answers=served.num_rows,
        answers_differ=differing(served, lived),
        examples=tuple(_told(feature.name, each) for feature in skew.features for each in feature.examples)[:5],
    )
    shutil.rmtree(scratch, ignore_errors=True)
    return found


def _told(feature: str, example: SkewExample) -> dict[str, Any]:
    """A mismatch without what differs from one run to the next."""
    return {"feature": feature} | {name: value for name, value in example.to_dict().items() if name != "request_id"}


class _Releases:
    """What was deployed at an instant, by a policy's history."""

    def __init__(self, history: Sequence[RolloutEvent], at: datetime) -> None:
        self._history, self._instants, self.at = history, [move.at for move in history], at

    def now(self) -> Deployment:
        """The deployment that the last move at or before `at` led to."""
        return self._history[bisect_right(self._instants, self.at) - 1].deployment


def differing(served: pa.Table, lived: pa.Table) -> int:
    """Rows of one log that are not in the other with the same answer."""
    keys = ["case_id", "variant"]
    columns = [*keys, *(name for name in _ANSWER if name not in keys)]
    ours, theirs = served.select(columns), lived.select(columns)
    both = ours.join(theirs, keys, join_type="inner", right_suffix="_lived")
    same: Any = None
    for name in columns[len(keys) :]:
        equal = pc.fill_null(pc.equal(both[name], both[f"{name}_lived"]), False)
        same = equal if same is None else pc.and_(same, equal)
    agreeing = int(pc.sum(same).as_py() or 0)
    return (ours.num_rows - agreeing) + (theirs.num_rows - both.num_rows)
