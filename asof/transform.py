"""A view's transformation: applied to the source rows before the join or the aggregation, on every path.

SQL (`mode="sql"`): the function gets a table name and returns a query over it. Python: the function gets all rows as
the frame its first parameter is annotated with (`pd.DataFrame`, `pl.DataFrame`, `pl.LazyFrame`, `pa.Table`; pandas when
it says nothing) and returns a frame of any of these kinds. It must keep the key and time columns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from asof.errors import AsofError


class TransformFailed(AsofError, RuntimeError):
    """The user's function raised, or returned something that is no frame."""


@dataclass(frozen=True)
class Transform:
    """What to do to the rows of a source."""

    function: Callable[[Any], Any]
    is_sql: bool

    def sql(self, table: str) -> str:
        """The query over `table`; only for SQL transformations."""
        query = self.function(table)
        if not isinstance(query, str):
            raise TransformFailed(f"A SQL transformation must return text, found {type(query).__name__}.")
        return query.strip().rstrip(";")


def apply(transform: Transform, rows: pa.Table, view: str) -> pa.Table:
    """Run a Python transformation over all rows.

    Raises:
        TransformFailed: naming the view, with the user's error as cause.
    """
    frame = _FRAMES[_wanted(transform.function)](rows)
    try:
        result = transform.function(frame)
    except Exception as error:
        raise TransformFailed(f"View {view!r}: its transformation raised {type(error).__name__}: {error}") from error
    if isinstance(result, pl.LazyFrame):
        result = result.collect()
    if isinstance(result, pl.DataFrame):
        return result.to_arrow()
    if isinstance(result, pa.Table):
        return result
    if isinstance(result, dict):
        return pa.table(result)
    if hasattr(result, "iloc"):
        return pa.Table.from_pandas(result, preserve_index=False)
    raise TransformFailed(
        f"View {view!r}: its transformation returned {type(result).__name__}.",
        hint="Return a pandas or Polars frame, or an Arrow table.",
    )


_FRAMES: dict[str, Callable[[pa.Table], Any]] = {
    "pandas": lambda rows: rows.to_pandas(),
    "polars": pl.from_arrow,
    "lazy": lambda rows: pl.DataFrame(rows).lazy(),
    "arrow": lambda rows: rows,
}


def _wanted(function: Callable[[Any], Any]) -> str:
    """Which frame the function's first parameter asks for; annotations may be strings after a trip to the registry."""
    parameters = list(inspect.signature(function).parameters.values())
    annotation = parameters[0].annotation if parameters else inspect.Parameter.empty
    if isinstance(annotation, str):  # as it is called in the function's module, if it is to be found there
        annotation = inspect.unwrap(function).__globals__.get(annotation, annotation)
    said = annotation if isinstance(annotation, str) else f"{annotation.__module__}.{annotation.__qualname__}"
    if "LazyFrame" in said:
        return "lazy"
    if said.startswith(("pl.", "polars")):
        return "polars"
    if said.startswith(("pa.", "pyarrow")):
        return "arrow"
    return "pandas"
