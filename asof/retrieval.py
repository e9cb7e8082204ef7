"""A retrieval from the offline store: it runs when its result is asked for, as Arrow, pandas or Polars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
from feast import OnDemandFeatureView, RepoConfig
from feast.data_format import DeltaFormat
from feast.infra.offline_stores.file_source import FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.saved_dataset import SavedDatasetStorage
from pyarrow.fs import FileType

from asof.dataset import ObjectStore, is_remote
from asof.errors import AsofError
from asof.landing import put


class SavedDatasetExists(AsofError, FileExistsError):
    """A saved dataset would overwrite data."""


class UnsupportedDestination(AsofError, NotImplementedError):
    """The destination is not files."""


class AsofRetrievalJob(RetrievalJob):
    """A retrieval that runs when its result is asked for.

    Args:
        compute: yields the table without on-demand features.
        repo_config: of the repository.
        full_feature_names: whether names carry their view.
        on_demand_feature_views: run by Feast's `to_arrow` over the whole table.
        metadata: what was asked.
    """

    def __init__(
        self,
        compute: Callable[[], pa.Table],
        repo_config: RepoConfig,
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._compute = compute
        self._config = repo_config
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = on_demand_feature_views or []
        self._metadata = metadata
        self._table: pa.Table | None = None

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        if self._table is None:
            self._table = self._compute()
        return self._table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def to_polars(self) -> pl.DataFrame:
        """The result, with on-demand features, as a Polars frame that shares Arrow's memory where it can."""
        frame = pl.from_arrow(self.to_arrow())
        assert isinstance(frame, pl.DataFrame)
        return frame

    @property
    def full_feature_names(self) -> bool:
        """Whether names carry their view."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Views computed from the result by Feast."""
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """What was asked."""
        return self._metadata

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result to one Parquet file, whole or not at all.

        Raises:
            UnsupportedDestination: the storage is not a file.
            SavedDatasetExists: there is data and `allow_overwrite` is false.
        """
        if not isinstance(storage, SavedDatasetFileStorage):
            raise UnsupportedDestination(
                f"Saved datasets go to files, found {type(storage).__name__}.", hint="Use SavedDatasetFileStorage."
            )
        options, endpoint = storage.file_options, storage.file_options.s3_endpoint_override or ""
        if isinstance(options.file_format, DeltaFormat):
            raise UnsupportedDestination("Saved datasets are Parquet, found DeltaFormat.", hint="Leave the format out.")
        uri = FileSource.get_uri_for_file_path(self._config.repo_path, options.uri)
        if not allow_overwrite and _exists(uri, endpoint):
            raise SavedDatasetExists(f"{uri} exists.", hint="Pass allow_overwrite=True, or choose another path.")
        put(uri, self.to_arrow(), endpoint)


def _exists(uri: str, endpoint: str) -> bool:
    if not is_remote(uri):
        return Path(uri).exists()
    filesystem, path = ObjectStore(uri, endpoint).place()
    return bool(filesystem.get_file_info(path).type != FileType.NotFound)
