"""The training frame: labelled spine rows beside the features known at each row's instant, named by its content.

Grain: N = one labelled case, n = one number feature, t = one text feature.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.bundle import EVENT_TIMESTAMP, LABEL, SCORE, FeatureSpec
from contracts.errors import SkewlessError
from contracts.files import whole_file
from contracts.task import Spine
from training.arrays import feature_kinds, is_array, places

if TYPE_CHECKING:
    from training.definitions import Definitions

PREFIX = "feature."
"""What a feature's column in the frame begins with, so that no spine column can clash with it."""


class FrameError(SkewlessError, ValueError):
    """A frame that cannot be trained on: a feature or label of the wrong type, or rows that do not match the spine."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the model reads: the graph's two inputs."""

    numbers: np.ndarray
    """float32 [N, n], null as NaN."""
    texts: np.ndarray
    """object [N, t] of str, null as the empty string."""

    def take(self, rows: np.ndarray) -> Inputs:
        """The rows at these positions."""
        return Inputs(self.numbers[rows], self.texts[rows])


@dataclass(frozen=True, slots=True)
class Origin:
    """Where features came from."""

    definitions: Definitions
    types: dict[str, str]
    """Arrow type that each feature came with, before it became an input."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Labelled rows in spine order. Build one with `Frame.of`."""

    table: pa.Table
    """Every spine column, then a `feature.<name>` column (float32 or string) a feature, in the service's order."""
    roles: Spine
    """Which spine column is the id, the instant, the label."""
    kind: str
    """The task's: what a label may be."""
    specs: tuple[FeatureSpec, ...]
    unlabelled: int
    """Spine rows left out because their outcome was not known, or there was none."""
    service_fingerprint: str
    registry_hash: str
    sources: dict[str, str]
    """SHA-256 of each file the frame was read from, by its path relative to the feature repository."""
    origin: Origin | None = None
    """What the features were read through; None for a frame put together by hand."""

    @classmethod
    def of(
        cls,
        spine: pa.Table,
        features: pa.Table,
        roles: Spine,
        *,
        kind: str = "binary",
        array_places: int = 16,
        unlabelled: int = 0,
        service_fingerprint: str = "",
        registry_hash: str = "",
        sources: dict[str, str] | None = None,
    ) -> Frame:
        """Put labelled spine rows and their features, row for row, into the frame's types.

        An array feature becomes `array_places` numbers, see `training.arrays`.

        Raises:
            FrameError: row counts differ, a label is not what the kind of task wants, or a feature is neither number,
                boolean, text nor array of numbers.
        """
        if spine.num_rows != features.num_rows:
            raise FrameError(f"{spine.num_rows} spine rows came back with {features.num_rows} rows of features.")
        _check_labels(spine[roles.label], roles.label, kind)
        table, specs = spine, []
        for name, column in zip(features.column_names, features.columns, strict=True):
            arrays = is_array(column.type)
            for part, values in places(name, column, array_places) if arrays else [(name, column)]:
                typed, spec = _as_input(part, values)
                table = table.append_column(PREFIX + part, typed)
                specs.append(spec)
        return cls(
            table.combine_chunks(),
            roles,
            kind,
            tuple(specs),
            unlabelled,
            service_fingerprint,
            registry_hash,
            sources or {},
        )

    @property
    def feature_names(self) -> list[str]:
        """Names of the features in the service's order; an array once."""
        return list(feature_kinds(self.specs))

    @property
    def labels(self) -> np.ndarray:
        """[N]: int8, 0 or 1, of a binary task; float64 of a regression."""
        return self.table[self.roles.label].cast(pa.int8() if self.kind == "binary" else pa.float64()).to_numpy()

    @property
    def event_timestamps(self) -> np.ndarray:
        """int64 [N], microseconds since the epoch at which the prediction was asked for."""
        return self.table[self.roles.event_timestamp].cast(pa.int64()).to_numpy()

    @property
    def known_at(self) -> np.ndarray:
        """int64 [N], microseconds since the epoch at which the label could first be read."""
        return self.table[self.roles.label_known_at].cast(pa.int64()).to_numpy()

    def slice_values(self, column: str) -> np.ndarray:
        """object [N] of str: one spine column as group names, null as the empty string."""
        return self.table[column].cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False).astype(object)

    def inputs(self, specs: tuple[FeatureSpec, ...] | None = None) -> Inputs:
        """The features as a model with these specs reads them; the frame's own order when none are given.

        Raises:
            FrameError: the frame lacks one of the features, or has it as another kind.
        """
        specs = self.specs if specs is None else specs
        missing = sorted({f"{spec.name} ({spec.kind})" for spec in specs if spec not in self.specs})
        if missing:
            raise FrameError(f"The frame lacks feature {', '.join(missing)}.")
        size = self.table.num_rows
        numbers = np.empty((size, sum(spec.kind == "number" for spec in specs)), np.float32)
        texts = np.empty((size, len(specs) - numbers.shape[1]), object)
        columns = {"number": 0, "text": 0}
        for spec in specs:
            column, at = self.table[PREFIX + spec.name], columns[spec.kind]
            columns[spec.kind] += 1
            if spec.kind == "number":
                numbers[:, at] = column.to_numpy()
            else:
                texts[:, at] = column.fill_null("").to_numpy(zero_copy_only=False)
        return Inputs(numbers, texts)

    def reference(self, rows: np.ndarray, scores: np.ndarray) -> pa.Table:
        """A bundle's reference frame: these rows' features under their own names, score, label, event timestamp."""
        taken = self.table.take(pa.array(rows))
        features = {spec.name: taken[PREFIX + spec.name] for spec in self.specs}
        return pa.table(
            {
                **features,
                SCORE: pa.array(scores, pa.float32()),
                LABEL: pa.array(self.labels[rows]),
                EVENT_TIMESTAMP: taken[self.roles.event_timestamp],
            }
        )

    def save(self, folder: Path) -> tuple[str, Path]:
        """Keep the frame as `<folder>/<content hash>/frame.parquet`; one already there has the same content.

        Returns:
            The content hash and the file.
        """
        name = content_hash(self.table)
        path = folder / name / "frame.parquet"
        if not path.is_file():
            with whole_file(path) as part:
                pq.write_table(self.table, part, compression="zstd")
        return name, path


def content_hash(table: pa.Table) -> str:
    """Hex SHA-256 of column names, types, values and nulls, in order.

    Says nothing of chunks, padding, dictionaries, file format or pandas: a float's NaN counts as null, and every
    encoding of text as text.
    """
    digest = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = "text" if _is_text(column.type) else str(column.type)
        digest.update(json.dumps([name, kind, len(column)]).encode())
        for part in _canonical(column):
            digest.update(part)
    return digest.hexdigest()


def _canonical(column: pa.ChunkedArray) -> list[bytes]:
    if _is_text(column.type):
        filled = pc.fill_null(column.cast(pa.large_string()), "")
        lengths = pc.binary_length(filled).to_numpy().astype("<i8")
        return [_nulls(column), lengths.tobytes(), "".join(filled.to_pylist()).encode()]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    elif pa.types.is_temporal(column.type):
        column = column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
    elif pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    elif not pa.types.is_integer(column.type):
        return [json.dumps(column.to_pylist(), default=str).encode()]  # decimals, lists: rare among spine columns
    values = pc.fill_null(column, pa.scalar(0, column.type)).to_numpy()
    return [_nulls(column), values.astype(values.dtype.newbyteorder("<")).tobytes()]


def _nulls(column: pa.ChunkedArray) -> bytes:
    return np.packbits(column.is_null().to_numpy()).tobytes()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _as_input(name: str, column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, FeatureSpec]:
    if name in (SCORE, LABEL, EVENT_TIMESTAMP):
        raise FrameError(
            f"Feature {name!r} has a name that the bundle's reference frame keeps for itself.",
            hint="rename the feature in its view.",
        )
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    given = str(column.type)
    if pa.types.is_null(column.type):
        column = column.cast(pa.float32())
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        typed = column.cast(pa.float64(), safe=False).cast(pa.float32(), safe=False)
        return pc.if_else(pc.is_nan(typed), pa.scalar(None, pa.float32()), typed), FeatureSpec(name, "number", given)
    if _is_text(column.type):
        return column.cast(pa.string()), FeatureSpec(name, "text", given)
    raise FrameError(
        f"Feature {name!r} is of type {column.type}; a model reads numbers, booleans, texts and arrays of numbers.",
        hint="leave it out of the feature service, or turn it into numbers in an on-demand view.",
    )


def _check_labels(column: pa.ChunkedArray, name: str, kind: str) -> None:
    if kind == "binary":
        odd = [value for value in column.unique().to_pylist() if value not in (0, 1)]
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        values = column.cast(pa.float64())
        odd = values.filter(pc.invert(pc.is_finite(values))).slice(0, 1).to_pylist()
    else:
        odd = column.slice(0, 1).to_pylist()
    if odd:
        wanted = "0, 1 or null" if kind == "binary" else "a finite number or null"
        raise FrameError(
            f"Label {name!r} has the value {odd[0]!r}; a {kind} task's label is {wanted}.", hint="fix the spine query."
        )
