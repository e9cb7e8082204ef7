"""The real year, landed once for all tests that read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from feature_repo.ingest import IngestReport, ingest


@pytest.fixture(scope="session")
def year(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IngestReport]:
    """The whole year of the installed package: its data root and the report. Read only."""
    data = tmp_path_factory.mktemp("year") / "data"
    return data, ingest(data)


@pytest.fixture(scope="session")
def landed(year: tuple[Path, IngestReport]) -> Callable[[str], pl.DataFrame]:
    """Read a table of the real year by its name."""
    return lambda name: pl.read_parquet(year[0] / "events" / name / "**" / "*.parquet", hive_partitioning=False)
