"""The door to Feast: logged requests through historical retrieval, exactly as training asks for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from contracts.errors import SkewlessError
from contracts.task import parse_duration

if TYPE_CHECKING:
    import feast

_ROW = "__row__"
_EVENT_TIMESTAMP = "event_timestamp"


class RecomputationError(SkewlessError, RuntimeError):
    """Historical retrieval did not give back the rows it was asked for."""


@dataclass(frozen=True, slots=True)
class ViewFacts:
    """What the audit needs of a definition to explain a difference."""

    name: str
    features: tuple[str, ...]
    grid: timedelta | None
    """A windowed view's boundaries: online it must answer with the last one at or before the request. None: no grid."""


class Recomputation:
    """One feature service behind one store.

    Args:
        store: a `feast.FeatureStore`, or anything with its reading methods.
        service: the feature service that the task names.
    """

    def __init__(self, store: feast.FeatureStore, service: str) -> None:
        self._store = store
        self._service = store.get_feature_service(service)
        self._input_types: dict[str, str] = {}
        self.views: dict[str, ViewFacts] = {}
        """By view name; on-demand views are not among them, they store nothing."""
        self.sources: dict[str, tuple[str, ...]] = {}
        """Feature name to the stored views its value comes from."""
        on_demand = {view.name: view for view in store.list_on_demand_feature_views()}
        wanted = {projection.name for projection in self._service.feature_view_projections}
        for projection in self._service.feature_view_projections:
            if projection.name in on_demand:
                self._learn_on_demand(on_demand[projection.name], projection)
        behind = {source for name in wanted & set(on_demand) for source in _stored_sources(on_demand[name])}
        stored = [*store.list_batch_feature_views(), *store.list_stream_feature_views()]
        for view in stored:
            if view.name in wanted | behind:
                self._learn_stored(view)
        for projection in self._service.feature_view_projections:
            if projection.name not in on_demand:
                self._learn_aliases(projection)

    def __call__(self, inputs: pa.ChunkedArray, at: pa.ChunkedArray) -> pa.Table:
        """Recompute every feature of the service.

        Args:
            inputs: JSON texts of keys and request fields, as logged.
            at: the event timestamp of each.

        Returns:
            The inputs as typed columns and the features, a row for each input, in order.
        """
        asked = self._typed(inputs)
        asked[_EVENT_TIMESTAMP] = pd.Series(at.to_numpy(), copy=False).dt.tz_localize("UTC").array
        asked[_ROW] = range(len(asked))
        answer = self._store.get_historical_features(entity_df=asked, features=self._service).to_arrow()
        if answer.num_rows != len(asked) or _ROW not in answer.column_names:
            raise RecomputationError(
                f"Historical retrieval was asked for {len(asked)} rows and gave {answer.num_rows}.",
                hint="use an offline store that keeps rows, such as asof.offline_store.AsofOfflineStore.",
            )
        return answer.sort_by(_ROW).drop_columns([_ROW])

    def _typed(self, inputs: pa.ChunkedArray) -> pd.DataFrame:
        if not self._input_types:
            return pd.DataFrame(index=range(len(inputs)))
        types = self._input_types
        shape = json.dumps({name: "VARCHAR" if kind == "TIMESTAMPTZ" else kind for name, kind in types.items()})
        fields = ", ".join(
            f"try_cast(parsed.{_quote(name)} as {kind}) as {_quote(name)}" for name, kind in types.items()
        )
        parsed = "select row, json_transform(inputs, ?) as parsed from logged"
        with duckdb.connect() as connection:
            connection.execute("set TimeZone = 'UTC'")
            connection.register("logged", pa.table({"row": np.arange(len(inputs)), "inputs": inputs}))
            query = f"select {fields} from ({parsed}) order by row"
            table: pa.Table = connection.sql(query, params=[shape]).to_arrow_table()
        columns = {}
        for name in table.column_names:
            column = table[name]
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.timestamp("us", tz="UTC"))
            # Without this a null among integers would turn them all into floats, and no key would be found again.
            nullable = {pa.int64(): pd.Int64Dtype()}.get if column.null_count else None
            columns[name] = column.to_pandas(types_mapper=nullable)
        return pd.DataFrame(columns)

    def _learn_stored(self, view: Any) -> None:
        features = tuple(each.name for each in view.features)
        self.views[view.name] = ViewFacts(view.name, features, _grid(view))
        for name in features:
            self.sources.setdefault(name, (view.name,))
        for column in view.entity_columns:
            self._input_types.setdefault(column.name, _duckdb_type(column.dtype))

    def _learn_on_demand(self, view: Any, projection: Any) -> None:
        sources = tuple(_stored_sources(view))
        for each in projection.features:
            self.sources[each.name] = sources
        for request in view.source_request_sources.values():
            for each in request.schema:
                self._input_types[each.name] = _duckdb_type(each.dtype)

    def _learn_aliases(self, projection: Any) -> None:
        for key, alias in projection.join_key_map.items():
            if key in self._input_types:
                self._input_types[alias] = self._input_types[key]


def open_recomputation(repository: Path, service: str) -> Recomputation:
    """The recomputation of a service of the Feast repository at `repository`."""
    from asof.repository import open_store  # Feast takes seconds to import

    return Recomputation(open_store(repository), service)


def _stored_sources(view: Any) -> Sequence[str]:
    return [projection.name for projection in view.source_feature_view_projections.values()]


def _grid(view: Any) -> timedelta | None:
    aggregations = getattr(view, "aggregations", None) or ()
    if not aggregations:
        return None
    every = parse_duration(view.tags["asof.every"]) if "asof.every" in view.tags else None
    slides = [each.slide_interval for each in aggregations if each.slide_interval not in (None, each.time_window)]
    grids = [each for each in [every, *slides] if isinstance(each, timedelta)]
    return max(grids) if grids else None


def _duckdb_type(dtype: Any) -> str:
    name = str(dtype)
    if name in ("Int32", "Int64"):
        return "BIGINT"
    if name in ("Float32", "Float64"):
        return "DOUBLE"
    if name == "Bool":
        return "BOOLEAN"
    return "TIMESTAMPTZ" if name == "UnixTimestamp" else "VARCHAR"


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
