"""Make a recorded run again from its sources, and hold frame, model and metrics against what it left behind.

Nothing is registered and nothing is written: a reproduction only answers whether the record can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from contracts.errors import SkewlessError
from contracts.task import Task
from training.frame import content_hash
from training.making import Tune, make_version
from training.retrieval import build_frame
from training.sources import SourceChanges, compare
from training.tracking import Recorded, revision


class TaskChanged(SkewlessError, ValueError):
    """The task file is not the one the run was made with."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One property, then and now."""

    name: str
    recorded: Any
    found: Any

    @property
    def equal(self) -> bool:
        """Whether it came out the same, to the last bit."""
        return bool(self.recorded == self.found)


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of making a run again."""

    run_id: str
    task: str
    results: tuple[Comparison, ...]
    """Dataset hash, model hash, and each holdout metric: what must be equal."""
    circumstances: tuple[Comparison, ...]
    """Code, lock file, feature definitions: what may explain a difference."""
    sources: SourceChanges

    @property
    def reproduced(self) -> bool:
        """Whether every result is equal."""
        return all(result.equal for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "run_id": self.run_id,
            "task": self.task,
            "reproduced": self.reproduced,
            "results": [{**asdict(each), "equal": each.equal} for each in self.results],
            "circumstances": [{**asdict(each), "equal": each.equal} for each in self.circumstances],
            "sources": asdict(self.sources),
        }


def reproduce(task: Task, recorded: Recorded, *, progress: Callable[[str], None]) -> Reproduction:
    """Rebuild frame and model of a recorded run from the sources as they are now.

    Args:
        task: from this checkout's task file.
        recorded: from `training.tracking.read_run`.
        progress: told what is being done.

    Raises:
        TaskChanged: the task file has changed since; the fields are named.
        SkewlessError: the frame or the model cannot be made at all.
    """
    _same_task(task, recorded)
    frame = build_frame(task, cutoff=recorded.cutoff, progress=progress)
    # A search is bounded by time and finds something else each time; what it found is on record.
    searched = recorded.searched
    tune: Tune | None = None if searched is None else (lambda *_: searched)
    made = make_version(task, frame, recorded.cutoff, None, lap=lambda _: None, say=progress, tune=tune)
    tags, here = recorded.tags, revision()
    return Reproduction(
        run_id=recorded.run_id,
        task=task.name,
        results=(
            Comparison("dataset_hash", tags["dataset_hash"], content_hash(frame.table)),
            Comparison("model_hash", tags["model_hash"], sha256(made.fitted.model).hexdigest()),
            *(
                Comparison(name, recorded.metrics.get(f"holdout.{name}"), found.value)
                for name, found in sorted(made.evaluation.metrics.items())
            ),
        ),
        circumstances=(
            Comparison("code_revision", tags["code_revision"], here.code),
            Comparison("lock_hash", tags["lock_hash"], here.lock_hash),
            Comparison("service_fingerprint", tags["service_fingerprint"], frame.service_fingerprint),
        ),
        sources=compare(recorded.sources, frame.sources),
    )


def _same_task(task: Task, recorded: Recorded) -> None:
    then, now = _flat(recorded.task_as_trained), _flat(task.fingerprint_data())
    differing = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if not differing:
        return
    shown = "; ".join(f"{name} was {then.get(name)!r}, is {now.get(name)!r}" for name in differing[:5])
    commit = recorded.tags["code_revision"].partition("+")[0]
    raise TaskChanged(
        f"Task {task.name!r} is not what run {recorded.run_id} was made with: {shown}.",
        hint=f"reproduce in a checkout of the run's revision: git worktree add ../reproduce {commit}",
    )


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {at: value}
    flat: dict[str, Any] = {}
    for name, each in value.items():
        flat |= _flat(each, f"{at}.{name}" if at else str(name))
    return flat
