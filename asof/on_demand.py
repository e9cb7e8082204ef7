"""On-demand views over a large table: the same function on the same values, without turning the rest into objects.

Feast hands an on-demand view every column of a retrieval as Python objects, those of views it never declared too, and
makes an instant in 3 microseconds. On a wide service that costs more than every join.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import polars as pl
import pyarrow as pa
from feast import Field, OnDemandFeatureView
from feast.transformation.python_transformation import PythonTransformation


def lean(view: OnDemandFeatureView, foreign: Collection[str]) -> OnDemandFeatureView:
    """The view as serving runs it: without the features of stored views that it does not declare.

    Args:
        view: an on-demand view; it is not changed.
        foreign: columns that stay out, by the names they have in the retrieval.
    """
    found = copy.copy(view)
    lean_transformation: Any = _Lean(view.feature_transformation, frozenset(foreign))
    found.feature_transformation = lean_transformation
    return found


class _Lean:
    """A view's transformation behind a narrower table."""

    def __init__(self, transformation: Any, foreign: frozenset[str]) -> None:
        self._transformation = transformation
        self._foreign = foreign

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformation, name)

    def transform_arrow(self, pa_table: pa.Table, features: list[Field]) -> pa.Table:
        """The outputs for each row; the names of both arguments are Feast's."""
        table = pa_table.select([name for name in pa_table.column_names if name not in self._foreign])
        if type(self._transformation) is PythonTransformation:
            return pa.Table.from_pydict(self._transformation.udf(to_lists(table)))
        answer: pa.Table = self._transformation.transform_arrow(table, features)
        return answer


def to_lists(table: pa.Table) -> dict[str, list[Any]]:
    """What `table.to_pydict()` gives; instants take a seventh of its time."""
    return {name: _list(column) for name, column in zip(table.column_names, table.columns, strict=True)}


def _list(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type) and column.type.unit == "us":
        series = pl.from_arrow(column)
        assert isinstance(series, pl.Series)
        return series.to_list()
    values: list[Any] = column.to_pylist()
    return values
