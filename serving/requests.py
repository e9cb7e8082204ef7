"""What an application may ask: the body of a prediction request, checked field by field against task and features."""

from __future__ import annotations

import difflib
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from asof.clockwork import to_micros
from contracts.errors import SkewlessError
from contracts.predictions import REHEARSAL
from contracts.task import Task
from serving.inputs import InputField
from serving.log_segments import OWN_ID

ClockMode = Literal["system", "request"]
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_SHOWN = 200
_EXPECTED = {
    "integer": "an integer",
    "number": "a finite number",
    "text": "a string",
    "boolean": "true or false",
    "timestamp": "an ISO 8601 instant with a time zone, such as 2024-01-31T09:30:00Z",
    "scalar": "a string, a number or a boolean",
}


class SchemaError(SkewlessError, ValueError):
    """Task and feature service disagree about what a request carries."""


class BadRequest(SkewlessError, ValueError):
    """A request that cannot be answered; says which field, what it holds and what was expected.

    Args:
        status: HTTP status, 4xx.
        field: path of the field, such as `rows[2].origin`; empty for the body as a whole.
        value: what was there.
        expected: what should have been there.
    """

    def __init__(self, status: int, field: str, value: Any, expected: str) -> None:
        shown = _shown(value)
        self.status = status
        self.field = field
        self.value = shown
        self.expected = expected
        super().__init__(f"{field or 'body'} is {_quoted(shown)}; expected {expected}.")

    def to_dict(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        return {
            "error": {"field": self.field, "value": self.value, "expected": self.expected, "message": self.fact},
        }


@dataclass(frozen=True, slots=True)
class Field:
    """One value of a row."""

    name: str
    type: str
    """integer | number | text | boolean | timestamp | scalar"""
    role: Literal["key", "request"]
    nullable: bool
    bits: int = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request of N rows."""

    request_id: str
    once: bool
    """Whether the caller chose the id, so that an earlier request of the same id is the same question."""
    columns: dict[str, list[Any]]
    """Keys and request fields as Python values, N each."""
    at: list[datetime]
    cases: list[str | None]
    inputs: list[dict[str, Any]]
    """Keys and request fields as received, a row each."""

    @property
    def rehearsal(self) -> bool:
        """Whether it is part of a load test."""
        return self.request_id.startswith(REHEARSAL)


class RequestSchema:
    """What one task's requests carry.

    Args:
        task: names keys, request fields, case id, limits.
        inputs: what the feature plan reads, with types.
        clock: in `system` mode a row is asked now; in `request` mode (replays) each row says when.

    Raises:
        SchemaError: the features read a key or field that the task does not declare.
    """

    def __init__(self, task: Task, inputs: Sequence[InputField], clock: ClockMode) -> None:
        spine, known = task.spine, {each.name: each for each in inputs}
        declared = [*spine.keys, *spine.request_fields]
        for each in inputs:
            if each.name not in declared:
                where = "spine.keys" if each.role == "key" else "spine.request_fields"
                raise SchemaError(
                    f"Task {task.name!r}: feature service {task.feature_service!r} reads {each.name!r}, which "
                    f"{where} does not name.",
                    hint=f"add it to {where} and select it in the spine query.",
                )
        self.task = task
        self.clock = clock
        self.fields = tuple(
            Field(
                name=name,
                type=known[name].type if name in known else "scalar",
                role="key" if name in spine.keys else "request",
                nullable=name not in task.serving.refuse_unknown,
                bits=known[name].bits if name in known else 64,
            )
            for name in dict.fromkeys(declared)
        )
        self._names = tuple(each.name for each in self.fields)
        names = set(self._names)
        self.has_case_field = spine.id not in names
        self._stamp = spine.event_timestamp
        self.has_stamp_field = clock == "request" and self._stamp not in names
        self._allowed = frozenset(names | {spine.id} | ({self._stamp} if clock == "request" else set()))

    def parse(self, body: bytes | Mapping[str, Any], now: datetime) -> Asked:
        """Check a body, or what it holds; `now` is the instant of its rows unless they carry their own.

        Raises:
            BadRequest: 400 for what is not JSON or repeats a case, 422 for a field of the wrong kind.
        """
        content = _json(body) if isinstance(body, bytes) else body
        if not isinstance(content, dict):
            raise BadRequest(422, "", content, 'an object such as {"rows": [{...}]}')
        stray = [name for name in content if name not in ("request_id", "rows")]
        if stray:
            raise BadRequest(422, stray[0], content[stray[0]], "no such field, only request_id and rows")
        request_id, once = _request_id(content, now)
        rows = self._rows(content)
        columns = self._columns(rows)
        inputs = [{name: row[name] for name in self._names} for row in rows]
        cases = [self._case(row, i) for i, row in enumerate(rows)]
        at = [now] * len(rows) if self.clock == "system" else self._instants(rows)
        _refuse_repeated(cases, self.task.spine.id)
        return Asked(request_id, once, columns, at, cases, inputs)

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Keys and request fields as Python values: column by column while all is well, which is soon checked."""
        columns: dict[str, list[Any]] = {}
        for each in self.fields if len(rows) > 1 else ():
            try:
                column = _read_column(each, [row[each.name] for row in rows])
            except (KeyError, OverflowError):
                column = None
            if column is None:
                break
            columns[each.name] = column
        if len(columns) == len(self.fields):
            return columns
        # One row, or something is wrong, or of no one type: each value is looked at, in the rows' order.
        found = [self.values(row, i) for i, row in enumerate(rows)]
        return {name: [row[name] for row in found] for name in self._names}

    def values(self, row: Mapping[str, Any], i: int) -> dict[str, Any]:
        """Keys and request fields of row `i` as Python values. Raises BadRequest for one that is missing or wrong."""
        found = {}
        for each in self.fields:
            if each.name not in row:
                raise BadRequest(422, f"rows[{i}].{each.name}", None, f"{_expectation(each)}; it is missing")
            found[each.name] = _checked(each, row[each.name], i)
        return found

    def _rows(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        rows = content.get("rows")
        if not isinstance(rows, list) or not rows:
            raise BadRequest(422, "rows", rows, "a list of one row or more")
        most = self.task.serving.max_rows
        if len(rows) > most:
            raise BadRequest(422, "rows", f"{len(rows)} rows", f"at most {most} rows a request")
        for i, row in enumerate(rows):
            if not isinstance(row, dict):
                raise BadRequest(422, f"rows[{i}]", row, "an object of field names and values")
            for name in row.keys() - self._allowed:
                if name == self._stamp and self.clock == "system":
                    expected = "no value: the serving clock says when a row is asked"
                else:
                    near = difflib.get_close_matches(name, self._allowed, n=1)
                    known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(self._allowed))}"
                    expected = f"no such field; {known}"
                raise BadRequest(422, f"rows[{i}].{_printable(name)}", row[name], expected)
        return rows

    def _case(self, row: dict[str, Any], i: int) -> str | None:
        name = self.task.spine.id
        value = row.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadRequest(422, f"rows[{i}].{name}", value, "a string or an integer")
        return str(value)

    def _instants(self, rows: Sequence[dict[str, Any]]) -> list[datetime]:
        field = Field(self._stamp, "timestamp", "request", nullable=False)
        read = _read_column(field, [row.get(self._stamp) for row in rows])
        if read is not None:
            return read
        for i, row in enumerate(rows):
            if self._stamp not in row:
                raise BadRequest(422, f"rows[{i}].{self._stamp}", None, f"{_EXPECTED['timestamp']}; it is missing")
        return [_checked(field, row[self._stamp], i) for i, row in enumerate(rows)]


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        strict = error
    # Many clients write NaN, which JSON has no word for. Read on, so that the answer can name the field it stands in.
    try:
        constants: list[str] = []

        def constant(text: str) -> float:
            constants.append(text)
            return float(text)

        content = json.loads(body, parse_constant=constant)
        if constants:
            return content
    except (ValueError, RecursionError):
        pass
    raise BadRequest(400, "", body[:_SHOWN].decode(errors="replace"), f"JSON ({strict})")


def _request_id(content: Mapping[str, Any], now: datetime) -> tuple[str, bool]:
    """The caller's id, or one of our own, which begins with the instant: the log, sorted by id, grows at its end."""
    given = content.get("request_id")
    if given is None:
        return f"{OWN_ID}{to_micros(now):014x}{secrets.token_hex(9)}", False
    if not isinstance(given, str) or _REQUEST_ID.fullmatch(given) is None or given.startswith(OWN_ID):
        expected = f"1 to 128 printable ASCII characters without spaces, not beginning with {OWN_ID!r}"
        raise BadRequest(422, "request_id", given, expected)
    return given, True


def _read_column(field: Field, column: list[Any]) -> list[Any] | None:
    """A column as Python needs it; None unless each of its values is what the field takes."""
    kinds = set(map(type, column))
    if type(None) in kinds and not field.nullable:
        return None
    values = [value for value in column if value is not None] if type(None) in kinds else column
    kinds.discard(type(None))
    if field.type == "text" and kinds <= {str}:
        return None if "\x00" in "".join(values) else column
    if field.type == "integer" and kinds <= {int}:
        limit = 1 << field.bits - 1
        return column if not values or (-limit <= min(values) and max(values) < limit) else None
    if field.type == "number" and kinds <= {int, float}:
        sound = all(map(math.isfinite, values))
        return [None if value is None else float(value) for value in column] if sound else None
    if field.type == "boolean" and kinds <= {bool}:
        return column
    if field.type == "timestamp" and kinds <= {str}:
        read = {value: _timestamp(value) for value in set(values)}
        return None if None in read.values() else [None if value is None else read[value] for value in column]
    return None


def _checked(field: Field, value: Any, i: int) -> Any:
    """The value as Python needs it, or BadRequest. Null stays None where the field may be null."""
    kind = field.type
    if value is None:
        if field.nullable:
            return None
    elif kind == "text":
        if isinstance(value, str) and "\x00" not in value:
            return value
    elif kind == "integer":
        if isinstance(value, int) and not isinstance(value, bool) and -(limit := 1 << field.bits - 1) <= value < limit:
            return value
    elif kind == "number":
        if isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif kind == "boolean":
        if isinstance(value, bool):
            return value
    elif kind == "timestamp":
        instant = _timestamp(value)
        if instant is not None:
            return instant
    elif isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise BadRequest(422, f"rows[{i}].{field.name}", value, _expectation(field))


def _expectation(field: Field) -> str:
    width = f" of {field.bits} bits" if field.type == "integer" else ""
    return f"{_EXPECTED[field.type]}{width}{' or null' if field.nullable else ''}"


def _timestamp(value: Any) -> datetime | None:
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        instant = datetime.fromisoformat(value)
        return instant.astimezone(UTC) if instant.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _refuse_repeated(cases: Sequence[str | None], name: str) -> None:
    first: dict[str, int] = {}
    for i, case in enumerate(cases):
        if case is not None and first.setdefault(case, i) != i:
            raise BadRequest(
                400, f"rows[{i}].{name}", case, f"each case once; rows[{first[case]}] asks about it already"
            )


def _shown(value: Any) -> Any:
    """A value that can be told back as JSON, and is short."""
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, float):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    text = value if isinstance(value, str) else repr(value)
    return _printable(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _quoted(value: Any) -> str:
    return "missing" if value is None else repr(value)
