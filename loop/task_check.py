"""A task against its repository, query and data before anything is trained: what is wrong, what will happen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc

from asof.errors import AsofError
from contracts.duration import show_duration
from contracts.errors import SkewlessError
from contracts.mistakes import nearest
from contracts.places import place_of
from contracts.spine import named_columns, read_spine, spine_columns
from contracts.task import Task
from loop.task_policy import policy
from training.choice import TINY_ROWS, choose
from training.definitions import Definitions, find_service, read_definitions
from training.findings import RULES
from training.learners.catalogue import find_learner
from training.learners.protocol import LearnerError

UNFINISHED = "FILL IN"
"""What `skewless task new` writes where only a person knows."""
_LONG_AGO = datetime(1, 1, 2, tzinfo=UTC)
_INPUTS = ("number", "text", "array")
_READ = "numbers, booleans, texts and arrays of numbers"


@dataclass(frozen=True, slots=True)
class Problem:
    """What keeps a task from being trained."""

    field: str
    fact: str
    hint: str = ""


@dataclass
class TaskCheck:
    """Everything that is known of a task before a training."""

    task: str
    kind: str
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Worth knowing, in nobody's way."""
    features: dict[str, str] = field(default_factory=dict)
    """Kind of each feature."""
    choice: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)
    """The window's parts: name, from, until, labelled cases (None where no data is landed)."""
    policy: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {name: value for name, value in vars(self).items() if name not in ("problems", "policy")}
        rules = {part: [{"what": what, "rule": rule} for what, rule in rows] for part, rows in self.policy.items()}
        return {**plain, "ok": not self.problems, "problems": [asdict(each) for each in self.problems], "policy": rules}


def check_task(task: Task, *, text: str, now: datetime) -> TaskCheck:
    """Hold a loaded task against everything it names.

    Args:
        task: from `load_task`.
        text: its file and its query as written, to find what is not filled in yet.
        now: data known later is not looked at.
    """
    found = TaskCheck(task.name, task.kind)
    left = [line.strip() for line in text.splitlines() if f"{UNFINISHED}:" in line]
    found.problems += [Problem("unfinished", line, "only a person knows this") for line in left]
    definitions = _definitions(task, found)
    columns = _columns(task, found)
    if definitions is not None:
        found.features = definitions.kinds
        found.problems += _against_service(task, definitions, columns)
        found.notes += _unused(task, definitions)
        found.problems += _audit_names(task, definitions)
    counted = bool(columns) and not found.problems
    labelled = _parts(task, found, now) if counted else 0
    if definitions is not None:
        choice = choose(task, found.features, labelled)
        found.choice = choice.to_dict()
        found.problems += _learner(choice.learner.used)
        if not labelled:
            found.notes.append("the learner is chosen by the number of labelled cases, of which none is known yet")
        if not counted and choice.learner != choose(task, found.features, TINY_ROWS).learner:
            del found.choice["learner"]  # nobody counted: "0 rows" would be said of data that may well be there
    found.policy = policy(task)
    return found


def _definitions(task: Task, found: TaskCheck) -> Definitions | None:
    from asof.repository import open_store

    try:
        store = open_store(task.feature_repo)
    except AsofError as error:
        found.problems.append(Problem("feature_repo", error.fact, error.hint))
        return None
    try:
        return read_definitions(store, find_service(store, task.feature_service, task.feature_repo))
    except (SkewlessError, AsofError) as error:
        found.problems.append(Problem("feature_service", error.fact, error.hint))
        return None


def _columns(task: Task, found: TaskCheck) -> dict[str, str]:
    """The spine's columns and types; every way in which they are not what the task says is noted."""
    try:
        columns = spine_columns(task)
    except SkewlessError as error:
        found.problems.append(Problem("spine.sql", error.fact, error.hint))
        return {}
    for name, column in named_columns(task):
        if column not in columns:
            near = nearest(column, columns).removeprefix("; ")
            told = f"the spine query has no column {column!r}, only {', '.join(columns)}"
            found.problems.append(Problem(name, told, near or f"select it in {task.spine.sql.name}"))
    for role in ("event_timestamp", "label_known_at"):
        column = getattr(task.spine, role)
        if column in columns and not columns[column].startswith(("TIMESTAMP", "DATE")):
            told = f"column {column!r} is {columns[column]}, an instant is wanted"
            found.problems.append(Problem(f"spine.{role}", told, "cast it to timestamptz in the query"))
    label = task.spine.label
    if columns.get(label, "").startswith(("VARCHAR", "TIMESTAMP", "DATE", "STRUCT")):
        told = f"column {label!r} is {columns[label]}, a number is wanted"
        found.problems.append(Problem("spine.label", told, "turn it into a number in the query"))
    return columns


def _against_service(task: Task, definitions: Definitions, columns: Mapping[str, str]) -> Iterator[Problem]:
    for name, needed, given in (
        ("spine.keys", definitions.keys, task.spine.keys),
        ("spine.request_fields", definitions.request_fields, (*task.spine.request_fields, *task.spine.keys)),
    ):
        for column, kind in needed.items():
            if column not in given:
                near = nearest(column, given).removeprefix("; ")
                told = f"lacks {column!r} ({kind}), which feature service {definitions.service!r} asks for"
                there = f"the spine query has it: add it to {name}" if column in columns else "select it, and name it"
                yield Problem(name, told, near or there)
    names = [feature.name for feature in definitions.features]
    for twice in sorted({each for each in names if names.count(each) > 1}):
        told = f"feature {twice!r} comes from more than one view of {definitions.service!r}"
        yield Problem("feature_service", told, "give the features of different views different names")
    for feature in definitions.features:
        if feature.kind not in _INPUTS:
            told = f"feature {feature.name!r} is {feature.declared}; a model reads {_READ}"
            hint = "leave it out of the service, or turn it into numbers in an on-demand view"
            yield Problem("feature_service", told, hint)


def _learner(name: str) -> Iterator[Problem]:
    try:
        find_learner(name)
    except LearnerError as error:
        yield Problem("training.learner", error.fact, error.hint)


def _unused(task: Task, definitions: Definitions) -> Iterator[str]:
    for column in task.spine.keys:
        if column not in definitions.keys:
            yield f"spine.keys names {column!r}, which no view of {definitions.service!r} is keyed by"
    for column in task.spine.request_fields:
        if column not in definitions.request_fields:
            yield f"spine.request_fields names {column!r}, which no on-demand view reads"


def _audit_names(task: Task, definitions: Definitions) -> Iterator[Problem]:
    views = [view.name for view in definitions.views]
    for view in task.audit.stale_after:
        if view not in views:
            told = f"names view {view!r}; the service reads {', '.join(views)}"
            yield Problem("audit.stale_after", told, nearest(view, views).removeprefix("; "))
    subjects = [*definitions.kinds, *views]
    for each in task.audit.accepted:
        rule, _, subject = each.partition(":")
        place = place_of(subject)
        for name, known in ((rule, list(RULES)), (place[0] if place else subject, subjects)):
            if name not in known:
                told = f"{each!r} names {name!r}, which is no {'rule' if known is not subjects else 'feature or view'}"
                yield Problem("audit.accepted", told, nearest(name, known).removeprefix("; "))


def _parts(task: Task, found: TaskCheck, now: datetime) -> int:
    """Place the window where a training now would, or at the newest label where data ends before; count its cases."""
    try:
        spine = read_spine(task, start=_LONG_AGO, end=now, known_at=now)
    except SkewlessError as error:
        found.problems.append(Problem("spine.sql", error.fact, error.hint))
        return 0
    labelled = spine.filter(spine[task.spine.label].is_valid())
    newest = pc.max(labelled[task.spine.label_known_at]).as_py()
    if newest is None:
        found.notes.append(f"none of {spine.num_rows:,} cases has a label by {now:%F %H:%M} UTC")
        return 0
    cutoff, settings = now, task.training
    if newest < now - settings.holdout:
        cutoff = newest
        found.notes.append(f"the newest label is of {newest:%F %H:%M} UTC: the window is placed as if it were then")
    stamps = labelled[task.spine.event_timestamp]
    bounds = [cutoff - settings.window, cutoff - settings.holdout - settings.validation, cutoff - settings.holdout]
    for name, start, end in zip(("train", "validation", "holdout"), bounds, [*bounds[1:], cutoff], strict=True):
        inside = pc.and_(pc.greater_equal(stamps, start), pc.less(stamps, end))
        cases = pc.sum(inside.cast("int64")).as_py() or 0
        length = show_duration(end - start)
        found.parts.append({"part": name, "from": start, "until": end, "length": length, "cases": cases})
    return sum(part["cases"] for part in found.parts)
