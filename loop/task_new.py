"""A task file and its query, begun from a feature service: what the repository knows is there, the rest is marked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from asof.latest import sql_type
from contracts.duration import show_duration
from contracts.errors import SkewlessError
from contracts.files import whole_file
from contracts.task import TASK_NAME, Task
from loop.task_check import UNFINISHED
from training.definitions import Definitions, find_service, read_definitions

_DECIDE: dict[str, Any] = {
    "success.metric": "roc_auc",
    "success.floor": 0.6,
    "success.cost.false_alarm": 1.0,
    "success.cost.missed": 1.0,
    "budget.p99_ms": 50,
    "budget.requests_per_second": 10,
    "monitoring.performance_floor": 0.58,
}
"""What nobody but a person knows, with a value that loads."""
_OTHER_KIND = {"quantiles", "success.cost.too_high", "success.cost.too_low", "gates.coverage_tolerance"}
"""Fields of a regression, which a new task is not."""
_SQL_TYPES = {
    "String": "varchar",
    "Int64": "bigint",
    "Int32": "integer",
    "Float64": "double",
    "Float32": "float",
    "Bool": "boolean",
    "UnixTimestamp": "timestamptz",
}
"""DuckDB's names of Feast's types, in which request fields are declared; keys come in Arrow's."""


class TaskExists(SkewlessError, FileExistsError):
    """A file is in the place of the one to be written."""


class TaskNameInvalid(SkewlessError, ValueError):
    """A name that no task file may carry."""


class RepositoryUnclear(SkewlessError, LookupError):
    """A project with no Feast repository, or with several."""


def find_repository(root: Path) -> Path:
    """The only folder of a project, or below it, that holds a `feature_store.yaml`."""
    found = sorted(
        path.parent for pattern in ("feature_store.yaml", "*/feature_store.yaml") for path in root.glob(pattern)
    )
    if len(found) == 1:
        return found[0]
    raise RepositoryUnclear(
        f"{root} has {len(found)} Feast repositories{': ' + ', '.join(p.name for p in found) if found else ''}.",
        hint="name one with --repo.",
    )


def new_task(repo: Path, service: str, folder: Path, name: str | None) -> tuple[Path, Path]:
    """Write `<name>.toml` and `<name>.sql` in a folder.

    Args:
        repo: an applied Feast repository.
        service: a feature service in it.
        folder: where task files lie.
        name: of the task; the service's, without a version at its end, when None.

    Returns:
        The two files.

    Raises:
        TaskNameInvalid: the name is not one a task file loads with; nothing is written, nor below.
        TaskExists: one of them is there already.
        FrameError: the repository has no such service.
        AsofError: the repository cannot be opened.
    """
    from asof.repository import open_store

    name = re.sub(r"[^a-z0-9_]", "_", re.sub(r"_v\d+$", "", service.lower())) if name is None else name
    if not re.fullmatch(TASK_NAME, name):
        raise TaskNameInvalid(
            f"{name!r} cannot be a task's name: it is lower-case letters, digits and _, and begins with a letter.",
            hint="give another with --name.",
        )
    files = folder / f"{name}.toml", folder / f"{name}.sql"
    for file in files:
        if file.exists():
            raise TaskExists(f"{file} exists.", hint="choose another name with --name; nothing is overwritten.")
    store = open_store(repo)
    definitions = read_definitions(store, find_service(store, service, repo))
    relative = Path(os.path.relpath(repo.resolve(), folder.resolve())).as_posix()
    texts = task_text(name, relative, definitions), query_text(name, definitions)
    for file, text in reversed(list(zip(files, texts, strict=True))):  # the task last: it is what others look for
        with whole_file(file) as part:
            part.write_text(text, encoding="utf-8")
    return files


def task_text(name: str, repo: str, definitions: Definitions) -> str:
    """The TOML: every field with what it means; defaults are comments, so that they stay defaults."""
    given = {
        "name": name,
        "kind": "binary",
        "feature_repo": repo,
        "feature_service": definitions.service,
        "spine.sql": f"{name}.sql",
        "spine.tables": {},
        "spine.id": "case_id",
        "spine.event_timestamp": "asked_at",
        "spine.keys": list(definitions.keys),
        "spine.request_fields": list(definitions.request_fields),
        "spine.label": "label",
        "spine.label_known_at": "label_known_at",
    }
    head = [
        f"# Task {name}, on feature service {definitions.service}. Lines marked {UNFINISHED} are yours to decide;",
        "# a line such as `# seed = 7` shows a default. Paths are relative to this file.",
        '# Durations are a number and a unit of s, m, h, d or w: "90m", "2h", "7d", "1d 12h".',
        "",
    ]
    return "\n".join([*head, *_section(Task, "", given)]) + "\n"


def _section(model: type[BaseModel], at: str, given: Mapping[str, Any]) -> Iterator[str]:
    tables: list[tuple[str, type[BaseModel], str]] = []
    for field, info in model.model_fields.items():
        path = f"{at}{field}"
        if path in _OTHER_KIND:
            continue
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            tables.append((path, inner, info.description or ""))
            continue
        yield from (f"# {line}" for line in (info.description or "").splitlines())
        yield _line(field, path, info, given)
    for path, inner, description in tables:
        yield from ("", f"# {description}", f"[{path}]")
        yield from _section(inner, f"{path}.", given)


def _line(field: str, path: str, info: FieldInfo, given: Mapping[str, Any]) -> str:
    if path in given:
        mark = f"  # {UNFINISHED}: {_TABLES_HINT}" if path == "spine.tables" else ""
        return f"{field} = {_toml(given[path])}{mark}"
    if path in _DECIDE:
        return f"{field} = {_toml(_DECIDE[path])}  # {UNFINISHED}: decide, then take this mark away"
    default = info.get_default(call_default_factory=True)
    return f"# {field} = {_toml(default)}" if default is not None else f"# {field} =  # not given"


_TABLES_HINT = 'such as { cases = "../data/events/cases" }'


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, timedelta):
        return f'"{show_duration(value)}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def query_text(name: str, definitions: Definitions) -> str:
    """The SQL: a query of the right columns and types without a row, until it is given tables."""
    columns = [("case_id", "varchar", "names the case; unique"), ("asked_at", "timestamptz", "when it is asked about")]
    columns += [(key, sql_type(kind), "join key") for key, kind in definitions.keys.items()]
    columns += [
        (key, _SQL_TYPES.get(kind, "varchar"), "sent with the request")
        for key, kind in definitions.request_fields.items()
        if key not in definitions.keys
    ]
    columns += [
        ("label", "integer", "1 it happened, 0 it did not, null there is no outcome"),
        ("label_known_at", "timestamptz", "when the label could first be read; null where there is none"),
    ]
    lines = [
        f'    cast(null as {kind}) as "{column}"{"" if column == columns[-1][0] else ","} -- {meaning}'
        for column, kind, meaning in columns
    ]
    return "\n".join(
        [
            f"-- Task {name}: one row a case, what is known when it is asked about and what came of it. DuckDB's SQL.",
            "-- A case belongs here as soon as it is asked about; its label is null until it is known.",
            f"-- {UNFINISHED}: take each column from the tables that spine.tables names, and drop `where false`.",
            "select",
            *lines,
            "where false",
            "",
        ]
    )
