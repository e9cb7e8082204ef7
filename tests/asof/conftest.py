"""Repositories made on the spot, and the oracle: what a feature is, in plain loops."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore

from asof.repository import load_config

MINUTE = 60_000_000
START = 1_356_998_400_000_000  # 2013-01-01, microseconds

UTC_MICROS = pa.timestamp("us", tz="UTC")

YAML = """\
project: demo
provider: local
registry: data/registry.db
online_store:
  type: sqlite
  path: data/online.db
entity_key_serialization_version: 3
"""


def known(row: dict[str, Any]) -> int:
    return max(row["event"], row["created"] if row["created"] is not None else row["event"])


def present(values: list[Any]) -> list[Any]:
    return [v for v in values if v is not None and not (isinstance(v, float) and math.isnan(v))]


def _in_order(row: dict[str, Any]) -> Any:
    """Events of one moment go by all their values, a null last: so that arrays of several columns go together."""
    for name in sorted(set(row) - {"key", "event", "created", "id"}):
        value = row[name]
        yield (value is None, value != value, value if value == value and value is not None else 0)


class Oracle:
    """Slow and obvious. Rows are dicts with key (a tuple), event, created (or None) and the columns; times are ints."""

    @staticmethod
    def latest(rows: list[dict], key: tuple, at: int | None, columns: list[str], every: int = 0, ttl: int = 0):
        """The row a plain view shows, or None."""
        if at is None or None in key:
            return None
        moment = at - at % every if every else at
        seen = [row for row in rows if row["key"] == key and known(row) <= moment]
        if not seen:
            return None
        best = max(
            seen,
            key=lambda row: (
                row["event"],
                row["created"] if row["created"] is not None else -math.inf,
                *((row[c] is not None, row[c] if row[c] is not None else 0) for c in columns),
            ),
        )
        return None if ttl and at - best["event"] > ttl else best

    @staticmethod
    def window(rows: list[dict], key: tuple, at: int | None, function: str, column: str, length: int, every=0, slide=0):
        """What an aggregation yields."""
        if at is None or None in key:
            return None
        moment = at - at % every if every else at
        moment = moment - moment % slide if slide else moment
        inside = [r for r in rows if r["key"] == key and moment - length < r["event"] and known(r) <= moment]
        if not column:
            return len(inside)
        values = present([row[column] for row in inside])
        if function == "count":
            return len(values)
        if function == "count_distinct":
            return len(set(values))
        if not values:
            return None
        if function in ("first", "last"):
            there = [row for row in inside if present([row[column]])]
            pick = max if function == "last" else min
            return pick(there, key=lambda row: (row["event"], known(row), row[column]))[column]
        if function.startswith("last_"):
            there = sorted(inside, key=lambda row: (row["event"], known(row), *_in_order(row)))
            return present([row[column] for row in there])[-int(function.removeprefix("last_")) :]
        if function in ("min", "max"):
            return {"min": min, "max": max}[function](values)
        if function.startswith("percentile_"):
            rank = math.ceil(float(function.removeprefix("percentile_")) / 100 * len(values))
            return sorted(values)[max(rank, 1) - 1]
        if function in ("var", "std") and len(values) < 2:
            return None
        if any(math.isinf(value) for value in values):
            total = sum(value for value in values if math.isinf(value))
            return {"sum": total, "mean": total}.get(function, math.nan)
        exact = [Fraction(value) for value in values]
        if function == "sum":
            return float(sum(exact)) if isinstance(values[0], float) else sum(values)
        if function == "mean":
            return float(sum(exact)) / len(exact)
        variance = float(statistics.variance(exact))
        return variance if function == "var" else math.sqrt(variance)


@pytest.fixture
def oracle() -> type[Oracle]:
    return Oracle


def times(micros: list[int | None], dtype: pa.DataType = UTC_MICROS) -> pa.Array:
    return pa.array(micros, pa.int64()).cast(pa.timestamp("us")).cast(dtype)


def write_rows(
    path: Path, rows: list[dict], key_names: list[str], columns: dict[str, pa.DataType], kind: pa.DataType = UTC_MICROS
) -> None:
    """Oracle rows as a Parquet file with the keys, `ts`, `created` (both of type `kind`) and the columns."""
    data: dict[str, Any] = {}
    for place, name in enumerate(key_names):
        values = [row["key"][place] for row in rows]
        data[name] = pa.array(values, pa.string() if any(isinstance(v, str) for v in values) else pa.int64())
    data["ts"] = times([row["event"] for row in rows], kind)
    data["created"] = times([row["created"] for row in rows], kind)
    for name, dtype in columns.items():
        data[name] = pa.array([row[name] for row in rows], dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(data), path)


@pytest.fixture
def rows_to_parquet() -> Callable[..., None]:
    return write_rows


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., FeatureStore]:
    """A real Feast store on asof, with the given objects applied."""

    def make(*objects: Any, yaml: str = YAML, folder: str = "repo") -> FeatureStore:
        repo = tmp_path / folder
        repo.mkdir(exist_ok=True)
        (repo / "feature_store.yaml").write_text(yaml)
        store = FeatureStore(repo_path=str(repo), config=load_config(repo))
        store.apply(list(objects))
        return store

    return make


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept-sql", action="store_true", help="rewrite the golden SQL files of asof")


@pytest.fixture
def accept_sql(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--accept-sql", default=False))
