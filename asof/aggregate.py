"""The functions a window may have: their names, what they mean, and which types they apply to.

`NULL` and `NaN` are ignored, as SQL ignores nulls. With nothing to aggregate, counts are 0 and everything else is null.
Variance and deviation are of the sample (null below two values). `first` and `last` go by event time, then by when the
event became known; of events equal in both, `first` is the smallest value and `last` the largest, so the answer does
not depend on how the source happens to be stored. Percentiles are exact: the smallest value at or above the rank.
`last_24` is an array: the last 24 values, oldest first, fewer where there are fewer. The arrays of one view are of the
same events, place by place, where their columns have no nulls.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import numpy as np

from asof.errors import AsofError

# What pandas, Spark and SQL call them: a Feast definition may have been written for any of these.
_SYNONYMS = {
    "avg": "mean",
    "average": "mean",
    "stddev": "std",
    "stddev_samp": "std",
    "variance": "var",
    "var_samp": "var",
    "nunique": "count_distinct",
    "countdistinct": "count_distinct",
    "approx_count_distinct": "count_distinct",
    "minimum": "min",
    "maximum": "max",
    "median": "percentile_50",
}
_ON_NUMBERS = {"sum", "mean", "std", "var"}
_ON_ORDERED = {"min", "max"}
_ON_ANYTHING = {"count", "count_distinct", "first", "last"}
_NUMBERS = {
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT"),
    *("FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN"),
}
_PERCENTILE = re.compile(r"(?:(?:approx_)?percentile_|p)(\d{1,2}(?:\.\d+)?|100)")
_SERIES = re.compile(r"last_0*([1-9]\d{0,3})")


class UnknownAggregation(AsofError, ValueError):
    """The function is not one that windows know."""


class AggregationTypeMismatch(AsofError, TypeError):
    """The function cannot be computed over the type of the column."""


def canonical(function: str, where: str = "Aggregations") -> str:
    """The one name of an aggregation function.

    >>> canonical("AVG")
    'mean'

    Args:
        function: as a definition names it.
        where: names view and column in the error.

    Raises:
        UnknownAggregation: no such function.
    """
    name = _SYNONYMS.get(function.lower(), function.lower())
    if name in _ON_NUMBERS | _ON_ORDERED | _ON_ANYTHING:
        return name
    if match := _PERCENTILE.fullmatch(name):
        return f"percentile_{match[1]}"
    if match := _SERIES.fullmatch(name):
        return f"last_{match[1]}"
    known = sorted(_ON_NUMBERS | _ON_ORDERED | _ON_ANYTHING)
    near = difflib.get_close_matches(name, [*known, *_SYNONYMS], n=1)
    raise UnknownAggregation(
        f"{where}: unknown aggregation {function!r}; known are {', '.join(known)}, median, percentile_<0-100>, "
        "last_<1-9999>.",
        hint=f"Did you mean {near[0]!r}?" if near else "Use one of these.",
    )


def check(function: str, sql_type: str, where: str) -> None:
    """Refuse a function over a type it has no meaning for.

    Args:
        function: a canonical name.
        sql_type: DuckDB's type of the column.
        where: names view and column in the error.

    Raises:
        AggregationTypeMismatch: for example a sum over text.
    """
    plain = sql_type.partition("(")[0]
    number = plain in _NUMBERS
    ordered = number or plain.startswith("TIMESTAMP") or plain == "DATE"
    if function in _ON_NUMBERS:
        fits, wanted = number, "a number or a boolean"
    elif keeps_order(function):
        fits, wanted = ordered, "a number, a boolean or a time"
    elif series_length(function):
        fits, wanted = number or plain == "VARCHAR", "a number, a boolean or a text"
    else:
        fits, wanted = ordered or plain in ("VARCHAR", "BLOB", "ENUM", "UUID"), "a single value (no list or struct)"
    if not fits:
        raise AggregationTypeMismatch(f"{where}: {function} needs {wanted}, found {sql_type}.")


def series_length(function: str) -> int:
    """How many values the function yields at most, as an array; 0 for one that yields a single value.

    >>> series_length("last_24")
    24
    """
    match = _SERIES.fullmatch(function)
    return int(match[1]) if match else 0


def keeps_order(function: str) -> bool:
    """Whether the function compares values."""
    return function in _ON_ORDERED or function.startswith("percentile_")


def keeps_type(function: str) -> bool:
    """Whether the function yields one of the column's own values (not a count, sum or mean of them)."""
    return keeps_order(function) or function in ("first", "last")


def result_type(function: str, column: np.dtype[Any]) -> np.dtype[Any]:
    """Of what the function yields over numbers of a type."""
    if function.startswith("count"):
        return np.dtype(np.int64)
    return np.dtype(np.float64) if function in ("mean", "var", "std") else column
