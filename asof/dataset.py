"""Sources that are not local Parquet files: object stores and Delta tables, as Arrow datasets that DuckDB reads.

Credentials come from where the cloud's own libraries look for them (for S3: `AWS_ACCESS_KEY_ID` and so on, or the
machine's role).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from asof.errors import AsofError


class PackageMissing(AsofError, ImportError):
    """A format needs a package that is not installed."""


@dataclass(frozen=True)
class ObjectStore:
    """Parquet at a URI: one object, or all below a prefix.

    Partition folders (`month=01`) become text columns, as in local folders.
    """

    uri: str
    endpoint: str = ""
    """Of an S3-compatible store that is not Amazon's, for example http://127.0.0.1:9000."""

    def open(self) -> pads.Dataset:
        """The rows. Raises OSError when there is nothing, or no way in."""
        filesystem, path = self.place()
        found = pads.dataset(path, filesystem=filesystem, format="parquet", partitioning="hive")
        if not found.files:
            raise FileNotFoundError(self.uri)
        folders = (folder for file in found.files for folder in file.removeprefix(path).split("/")[:-1])
        names = list(dict.fromkeys(folder.partition("=")[0] for folder in folders if "=" in folder))
        if not names:
            return found
        # Inferred, 01 would become the number 1.
        text = pads.partitioning(pa.schema([(name, pa.string()) for name in names]), flavor="hive")
        return pads.dataset(found.files, filesystem=filesystem, format="parquet", partitioning=text)

    def place(self) -> tuple[pafs.FileSystem, str]:
        """The file system, and the path in it."""
        if self.uri.startswith("s3://"):
            endpoint = {"endpoint_override": self.endpoint} if self.endpoint else {}
            return pafs.S3FileSystem(**endpoint), self.uri.removeprefix("s3://")
        filesystem, path = pafs.FileSystem.from_uri(self.uri)
        return filesystem, path


@dataclass(frozen=True)
class DeltaTable:
    """The newest version of a Delta table.

    Raises:
        PackageMissing: when it is made, without the package `deltalake`.
    """

    uri: str
    """An absolute folder or a remote URI."""
    endpoint: str = ""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("deltalake") is None:
            raise PackageMissing(
                f"{self.uri} is a Delta table, and the package deltalake is not installed.",
                hint="pip install deltalake, or install skewless[delta].",
            )

    def open(self) -> pads.Dataset:
        """The rows. Raises OSError when there is no such table."""
        from deltalake import DeltaTable as Table
        from deltalake.exceptions import TableNotFoundError

        try:
            return Table(self.uri, storage_options=self._options()).to_pyarrow_dataset()
        except TableNotFoundError as error:
            raise FileNotFoundError(self.uri) from error

    def append(self, rows: pa.Table) -> None:
        """Add rows in one commit: readers see all of them or none."""
        from deltalake import write_deltalake

        write_deltalake(self.uri, rows, mode="append", storage_options=self._options())

    def _options(self) -> dict[str, Any]:
        if not self.endpoint:
            return {}
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": str(self.endpoint.startswith("http://")).lower()}


def is_remote(path: str) -> bool:
    """Whether the path is a URI of an object store."""
    parsed = urlparse(path)
    return bool(parsed.scheme and parsed.netloc)
