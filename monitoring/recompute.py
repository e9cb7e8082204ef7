"""The door to Feast: logged requests through historical retrieval, exactly as training asks for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from contracts.errors import SkewlessError
from monitoring.scratch import scratch

if TYPE_CHECKING:
    import feast

_ROW = "__row__"
_EVENT_TIMESTAMP = "event_timestamp"
_NO_ENTITY = "__dummy_id"
_INSTANT = pa.timestamp("us", tz="UTC")


class RecomputationError(SkewlessError, RuntimeError):
    """The training path cannot be asked, or did not give back the rows it was asked for."""


@dataclass(frozen=True, slots=True)
class ViewFacts:
    """What the audit needs of a stored view to explain a difference."""

    name: str
    """As the log names it: the alias, where the service gives one."""
    grid: timedelta | None
    """How often its values change: online it must answer as of the last boundary at or before the request. None: it has
    no boundaries."""
    ttl: timedelta = timedelta(0)
    """How old an answer may be when it is asked for; 0 is any age."""
    windows: Mapping[str, timedelta] | None = None
    """A windowed view's features and how far back each looks, 0 where that is for ever. None: a plain view."""


class Recomputation:
    """One feature service behind one store.

    Args:
        store: a `feast.FeatureStore`, or anything with its reading methods.
        service: the feature service that the task names.

    Raises:
        RecomputationError: the store has no such service.
    """

    def __init__(self, store: feast.FeatureStore, service: str) -> None:
        services = {each.name: each for each in store.list_feature_services()}
        if service not in services:
            raise RecomputationError(
                f"The Feast registry has no feature service {service!r}, only {', '.join(sorted(services)) or 'none'}.",
                hint="run `feast apply`, or correct the task's feature_service.",
            )
        self._store = store
        self._service = services[service]
        self._input_types: dict[str, str] = {}
        self._stored: dict[str, Any] = {}
        self._earliest: dict[str, int | None] = {}
        self.views: dict[str, ViewFacts] = {}
        """Stored views behind the service, by the name the log has them under."""
        self.sources: dict[str, tuple[str, ...]] = {}
        """Feature name to the stored views its value comes from."""
        stored = {view.name: view for view in [*store.list_batch_feature_views(), *store.list_stream_feature_views()]}
        on_demand = {view.name: view for view in store.list_on_demand_feature_views()}
        for projection in self._service.feature_view_projections:
            if projection.name in on_demand:
                behind = list(on_demand[projection.name].source_feature_view_projections.values())
                self._learn_request(on_demand[projection.name])
            else:
                behind = [projection]
            for each in behind:
                self._learn_view(stored[each.name], each)
            for feature in projection.features:
                self.sources[feature.name] = tuple(each.name_to_use() for each in behind)

    def __call__(self, inputs: pa.ChunkedArray, at: pa.ChunkedArray) -> pa.Table:
        """Recompute every feature of the service.

        Args:
            inputs: JSON texts of keys and request fields, as logged.
            at: the event timestamp of each.

        Returns:
            The features, a row for each input, in order.
        """
        asked = pa.table({**self._typed(inputs), _EVENT_TIMESTAMP: at, _ROW: np.arange(len(at))})
        answer = self._store.get_historical_features(entity_df=asked, features=self._service).to_arrow()
        if answer.num_rows != asked.num_rows:
            raise RecomputationError(
                f"Historical retrieval was asked for {asked.num_rows} rows and gave {answer.num_rows}.",
                hint="use an offline store that keeps rows, such as asof.offline_store.AsofOfflineStore.",
            )
        return answer.sort_by(_ROW).select(list(self.sources))

    @property
    def fingerprint(self) -> str:
        """Hash of the definitions behind the service as the registry holds them now."""
        from asof.fingerprint import service_fingerprint  # Feast takes seconds to import

        return service_fingerprint(self._store, self._service.name)

    def earliest(self, view: str) -> int | None:
        """The first event of a view's source, microseconds since the epoch; None when it has none, or is no file."""
        if view not in self._earliest:
            self._earliest[view] = _first_event(self._stored[view], self._store.config)
        return self._earliest[view]

    def _typed(self, inputs: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
        """Logged JSON as columns of the types the definitions give; what does not fit its type is null."""
        if not self._input_types:
            return {}
        types = {_quote(name): kind for name, kind in self._input_types.items()}
        fields = ", ".join(["row", *(f"try_cast(parsed.{name} as {kind}) as {name}" for name, kind in types.items())])
        shape = json.dumps({k: "VARCHAR" if v == "TIMESTAMPTZ" else v for k, v in self._input_types.items()})
        parsed = "select row, json_transform(inputs, ?) as parsed from logged"
        with scratch() as connection:
            connection.execute("set TimeZone = 'UTC'")
            connection.register("logged", pa.table({"row": np.arange(len(inputs)), "inputs": inputs}))
            query = f"select {fields} from ({parsed}) order by row"
            table: pa.Table = connection.sql(query, params=[shape]).to_arrow_table()
        stamps = {name for name, kind in self._input_types.items() if kind == "TIMESTAMPTZ"}
        return {name: table[name].cast(_INSTANT) if name in stamps else table[name] for name in self._input_types}

    def _learn_view(self, view: Any, projection: Any) -> None:
        name = projection.name_to_use()
        self._stored[name] = view
        self.views[name] = _facts(name, view)
        for column in view.entity_columns:
            if column.name != _NO_ENTITY:
                self._input_types[projection.join_key_map.get(column.name, column.name)] = _duckdb_type(column.dtype)

    def _learn_request(self, view: Any) -> None:
        for request in view.source_request_sources.values():
            for each in request.schema:
                self._input_types[each.name] = _duckdb_type(each.dtype)


def open_recomputation(repository: Path, service: str) -> Recomputation:
    """The recomputation of a service of the Feast repository at `repository`."""
    from asof.repository import open_store  # Feast takes seconds to import

    return Recomputation(open_store(repository), service)


def _facts(name: str, view: Any) -> ViewFacts:
    from asof.kept import aggregations_of  # Feast takes seconds to import
    from asof.view import grid_of

    aggregations = aggregations_of(view)
    every = timedelta(microseconds=grid_of(view))
    slides = [each.slide_interval for each in aggregations if each.slide_interval not in (None, each.time_window)]
    grid = max(filter(None, [every, *slides]), default=None)
    windows = {each.resolved_name(each.time_window): each.time_window or timedelta() for each in aggregations}
    return ViewFacts(name, grid, view.ttl or timedelta(), windows or None)


def _first_event(view: Any, config: Any) -> int | None:
    from asof.offline_store import open_session  # Feast takes seconds to import
    from asof.view import UnsupportedView, compile_view

    if view.batch_source is None:
        return None
    try:
        source = compile_view(view, config).source
    except UnsupportedView:
        return None
    with open_session(config) as session:
        scan = session.scan(source)
        at = scan.micros(source.timestamp, "timestamp field")
        first: int | None = session.arrow(f"select min({at}) as at from {scan.relation} s")["at"][0].as_py()
    return first


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
