"""Feast's offline store on DuckDB: `offline_store.type: asof.offline_store.AsofOfflineStore`.

    offline_store:
      type: asof.offline_store.AsofOfflineStore
      memory_limit: 4GB       # optional; beyond it DuckDB spills
      threads: 2              # optional
      shards: 8               # optional, with the next: split keys into 8 parts and compute them on Ray
      ray_address: local      # or auto, host:6379, ray://host:10001; see docs/scale-out.md

Differences from Feast's own file stores: rows out are the rows in, in order, repeated ones too; a value that became
known after the entity row's time is never returned, asked or not; declared types hold offline as online; windowed views
are computed; the entity frame may be pandas, Polars, Arrow or SQL.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, OnDemandFeatureView, RepoConfig
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from pydantic import Field, model_validator

from asof.clockwork import to_micros
from asof.definition import View
from asof.engine import as_of
from asof.entities import EntityRows, read_entities
from asof.errors import AsofError
from asof.hooks import hook
from asof.kept import keep
from asof.landing import append, put
from asof.on_demand import lean
from asof.quoting import identifier
from asof.retrieval import AsofRetrievalJob, UnsupportedDestination
from asof.session import Session
from asof.shards import Shards
from asof.source import Scan
from asof.unknown import explain
from asof.view import compile_view, file_source

_log = logging.getLogger(__name__)

keep()


class DuplicateColumn(AsofError, ValueError):
    """Two columns of the result would have one name."""


class AsofOfflineStoreConfig(FeastConfigBaseModel):
    """The `offline_store` section of `feature_store.yaml`."""

    type: Literal["asof.offline_store.AsofOfflineStore"] = "asof.offline_store.AsofOfflineStore"

    threads: int | None = Field(default=None, ge=1)
    """Worker threads of DuckDB; its own choice when not given. With shards: CPUs of each shard, 1 when not given."""

    memory_limit: str | None = None
    """For example 4GB; DuckDB spills beyond it. With shards: of each of them."""

    temp_directory: str | None = None
    """Where to spill, and to put rows aside that are too many to search at once; a relative path is below the working
    directory. When not given, rows go to the system's folder for temporary files: name a disk where that is memory."""

    shards: int | None = Field(default=None, ge=1)
    """Parts that each view's keys are split into; needs `ray_address`."""

    ray_address: str | None = None
    """Where the shards are computed, see `asof.cluster`; needs `shards`. Ray is imported only when this is given."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.shards is None) != (self.ray_address is None):
            given, missing = ("shards", "ray_address") if self.ray_address is None else ("ray_address", "shards")
            raise ValueError(
                f"offline_store.{given} is {getattr(self, given)!r} and {missing} is missing: give both, for example "
                "shards: 8 and ray_address: local, or neither."
            )
        return self


def open_session(config: RepoConfig) -> Session:
    """A DuckDB session with the repository's settings; relative paths in SQL resolve against the repository.

    Raises:
        ClusterUnreachable: the settings name a Ray cluster, and none answers.
    """
    settings = config.offline_store
    chosen, elsewhere = {}, None
    if isinstance(settings, AsofOfflineStoreConfig):
        chosen = settings.model_dump(include={"threads", "memory_limit", "temp_directory"})
        if settings.shards is not None and settings.ray_address is not None:
            from asof.cluster import Cluster  # Ray takes seconds to import

            threads = settings.threads or 1
            elsewhere = Shards(settings.shards, Cluster(settings.ray_address, threads), chosen | {"threads": threads})
    return Session(**chosen, search_path=config.repo_path, elsewhere=elsewhere)


hook(open_session)


class AsofOfflineStore(OfflineStore):
    """Point-in-time retrieval through `as_of`; see the module."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | pl.DataFrame | pl.LazyFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        filter_by_created_timestamp: bool = True,
    ) -> RetrievalJob:
        """Join features to entity rows as of each row's time.

        A row without a key or a time has null features; a warning says how many there are, by column.

        Without entity rows, every key that had an event between the dates is asked about at each of its event times.

        Args:
            config: of the repository.
            feature_views: views the references name, with their projections.
            feature_refs: "view:feature".
            entity_df: a frame or SQL with the join keys and one time column.
            registry: for on-demand views.
            project: for on-demand views.
            full_feature_names: prefix names with their view.
            start_date: first event time when there are no entity rows.
            end_date: last event time when there are no entity rows.
            filter_by_created_timestamp: accepted for Feast; rows not yet known are never returned either way.

        Raises:
            AsofError: a kind of it for each way the request can be wrong, before any query runs.
        """
        wanted = _features_by_view(feature_views, feature_refs)
        views = [compile_view(view, config, wanted[view.projection.name_to_use()]) for view in feature_views]
        prefixes = [view.projection.name_alias or view.name for view in feature_views]
        with open_session(config) as session:
            entities = read_entities(entity_df, session, views, start_date, end_date)
        for column, rows in entities.missing.items():
            _log.warning(
                "%d of %d entity rows have no %s: their features are null", rows, entities.table.num_rows, column
            )

        def compute() -> pa.Table:
            with open_session(config) as session:
                return _joined(views, prefixes, entities, session, full_feature_names)

        first, last = entities.extent()
        return AsofRetrievalJob(
            compute,
            config,
            full_feature_names=full_feature_names,
            on_demand_feature_views=[
                lean(view, _foreign(view, feature_views, wanted, full_feature_names))
                for view in OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
            ],
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entities.table.column_names if name != entities.timestamp],
                min_event_timestamp=first,
                max_event_timestamp=last,
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each key between two times; ties go to the latest created."""
        times = [timestamp_field, *filter(None, [created_timestamp_column])]
        columns = [*join_key_columns, *feature_name_columns, *times]

        def narrow(scan: Scan) -> str:
            chosen = [scan.require(column, "column") for column in columns]
            newest = f"{scan.micros(timestamp_field, 'timestamp field')} desc"
            if created_timestamp_column:
                newest += f", {scan.micros(created_timestamp_column, 'created timestamp column')} desc nulls last"
            newest += "".join(f", s.{identifier(name)} desc nulls last" for name in feature_name_columns)
            keys = ", ".join(f"s.{identifier(name)}" for name in join_key_columns)
            partition = f"partition by {keys} " if keys else ""
            return (
                f"select {', '.join(chosen)} from {scan.relation} s"
                f"{_between(scan, timestamp_field, start_date, end_date)}"
                f" qualify row_number() over ({partition}order by {newest}) = 1"
            )

        return _pull(config, data_source, narrow)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """All rows between two times."""
        times = [timestamp_field, *filter(None, [created_timestamp_column])]
        columns = list(dict.fromkeys([*join_key_columns, *feature_name_columns, *times]))

        def narrow(scan: Scan) -> str:
            chosen = [scan.require(column, "column") for column in columns]
            scan.micros(timestamp_field, "timestamp field")
            where = _between(scan, timestamp_field, start_date, end_date)
            return f"select {', '.join(chosen)} from {scan.relation} s{where}"

        return _pull(config, data_source, narrow)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the view's batch source; a reader sees all of them or none.

        Raises:
            UnsupportedView: the source is not Parquet files.
            LandingMismatch: the rows' columns are not the source's.
        """
        assert feature_view.batch_source is not None
        source = file_source(feature_view.batch_source, feature_view.name, config)
        append(source, table)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Add logged features to their destination folder as one file."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise UnsupportedDestination(
                f"Feature logs go to files, found {type(destination).__name__}.", hint="Use FileLoggingDestination."
            )
        rows = pq.read_table(data) if isinstance(data, Path) else data
        folder = FileSource.get_uri_for_file_path(config.repo_path, destination.path)
        put(f"{folder}/{uuid.uuid4().hex}.parquet", rows, destination.s3_endpoint_override)


def _features_by_view(feature_views: list[FeatureView], feature_refs: list[str]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {view.projection.name_to_use(): [] for view in feature_views}
    for reference in feature_refs:
        view, _, feature = reference.partition(":")
        if view in wanted and feature not in wanted[view]:  # others belong to on-demand views
            wanted[view].append(feature)
    return wanted


def _foreign(
    on_demand: OnDemandFeatureView, stored: list[FeatureView], wanted: dict[str, list[str]], full_feature_names: bool
) -> set[str]:
    """Columns of the result that hold features of views which an on-demand view does not declare."""
    declared = {projection.name for projection in on_demand.source_feature_view_projections.values()}
    columns = {"mine": set[str](), "others": set[str]()}
    for view in stored:
        prefix = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
        names = (prefix + name for name in wanted[view.projection.name_to_use()])
        columns["mine" if view.name in declared else "others"].update(names)
    return columns["others"] - columns["mine"]


def _joined(
    views: list[View], prefixes: list[str], entities: EntityRows, session: Session, full_feature_names: bool
) -> pa.Table:
    table, answers = entities.table, as_of(views, entities.spine, session)
    for sentence in explain(answers, entities.spine, session):
        _log.warning("%s", sentence)
    for prefix, answer in zip(prefixes, answers, strict=True):
        for name, column in zip(answer.features.column_names, answer.features.columns, strict=True):
            full = f"{prefix}__{name}" if full_feature_names else name
            if full in table.column_names:
                raise DuplicateColumn(
                    f"Feature {name!r} of view {prefix!r}: the result already has a column {full!r}.",
                    hint="Pass full_feature_names=True, or drop the column from the entity rows.",
                )
            table = table.append_column(full, column)
    return table


def _pull(config: RepoConfig, data_source: DataSource, narrow: Callable[[Scan], str]) -> AsofRetrievalJob:
    source = file_source(data_source, data_source.name, config)

    def compute() -> pa.Table:
        with open_session(config) as session:
            return in_utc(session.arrow(narrow(session.scan(source))))

    return AsofRetrievalJob(compute, config)


def in_utc(table: pa.Table) -> pa.Table:
    """The table with zoned times as microseconds labelled UTC (DuckDB labels them Etc/UTC)."""
    fields = [
        field.with_type(pa.timestamp("us", tz="UTC")) if pa.types.is_timestamp(field.type) and field.type.tz else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields), safe=False)


def _between(scan: Scan, column: str, start: datetime | None, end: datetime | None) -> str:
    bounds = [
        scan.bound(column, comparison, to_micros(moment))
        for comparison, moment in ((">=", start), ("<=", end))
        if moment is not None
    ]
    return f" where {' and '.join(bounds)}" if bounds else ""
