"""What a plan reads of a request: its columns, checked value by value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from contracts.errors import SkewlessError

InputType = Literal["integer", "number", "text", "boolean", "timestamp"]
Columns = dict[str, list[Any]]

_PYTHON: dict[InputType, tuple[type, ...]] = {
    "integer": (int,),
    "number": (float, int),
    "text": (str,),
    "boolean": (bool,),
    "timestamp": (datetime,),
}


class WrongInput(SkewlessError, ValueError):
    """Columns that do not hold what a plan reads."""


@dataclass(frozen=True, slots=True)
class InputField:
    """One value a caller sends: a join key, or a field that on-demand views read from the request."""

    name: str
    type: InputType
    role: Literal["key", "request"]
    bits: Literal[32, 64] = 64
    """Width of an integer."""


def checked(inputs: Sequence[InputField], columns: Mapping[str, list[Any]], count: int, service: str) -> Columns:
    """The inputs' columns, each of the type a plan reads.

    Args:
        inputs: what it reads.
        columns: a list of `count` values for each of them.
        count: rows.
        service: the feature service, for messages.

    Raises:
        WrongInput: a column is missing, or holds what it cannot.
    """
    found: Columns = {}
    for each in inputs:
        column = columns.get(each.name)
        if column is None:
            near = difflib.get_close_matches(each.name, sorted(set(columns) - {f.name for f in inputs}), n=1)
            what = "entity key" if each.role == "key" else "request field"
            raise WrongInput(
                f"Feature service {service!r} reads {what} {each.name!r}, which is missing.",
                hint=f"rename the column {near[0]!r}." if near else f"give a column of {each.type} values.",
            )
        if len(column) != count:
            raise WrongInput(f"Column {each.name!r} has {len(column)} values for {count} rows.")
        if not _fits(column, each):
            i = next(i for i, value in enumerate(column) if not _fits([value], each))
            width = f" of {each.bits} bits" if each.type == "integer" else ""
            zone = " with a time zone" if each.type == "timestamp" else ""
            raise WrongInput(
                f"{each.name!r} is {column[i]!r} in row {i}; feature service {service!r} reads it as "
                f"{each.type}{width}{zone}.",
                hint="convert the column; null is None.",
            )
        found[each.name] = column
    return found


def _fits(column: Sequence[Any], field: InputField) -> bool:
    expected = _PYTHON[field.type]
    for kind in set(map(type, column)):
        if kind is not type(None) and (not issubclass(kind, expected) or (kind is bool and field.type != "boolean")):
            return False
    if field.type == "integer":
        limit = 1 << field.bits - 1
        return all(value is None or -limit <= value < limit for value in column)
    return field.type != "timestamp" or all(value is None or value.tzinfo is not None for value in column)
