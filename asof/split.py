"""Rows too many to hold at once, put aside by key on disk and read back a part of the keys at a time.

    with Split(folder, parts=64) as split:
        for batch in batches:                    # has a column `code`
            split.add(batch, batch["code"].to_numpy() % 64)
        rows = pa.Table.from_batches(split.part(3))

The file has no name: however the process ends, the operating system frees it. Reading maps it, so a part costs the
pages it touches.
"""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from asof.errors import AsofError

Ints = NDArray[np.int64]


class SpillFailed(AsofError, OSError):
    """Rows could not be put aside on disk."""


class Split:
    """Rows on disk by part.

    Args:
        folder: on whose disk; the system's folder for temporary files when None.
        parts: how many, at most 256.
    """

    def __init__(self, folder: str | None, parts: int) -> None:
        self.parts = parts
        self._folder = folder or tempfile.gettempdir()
        try:
            Path(self._folder).mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed on exit)
        except OSError as error:
            raise self._failure(error) from error
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._map: mmap.mmap | None = None
        self._batches: list[pa.RecordBatch] = []
        self._ends: list[Ints] = []
        """Of each batch written, where each part of it ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batches = []
        self._file.close()

    def add(self, batch: pa.RecordBatch, part: NDArray[np.integer]) -> None:
        """Put rows aside, each in its part; within a part they keep their order.

        Raises:
            SpillFailed: the disk is full.
        """
        number = part.astype(np.uint8)  # numpy sorts small numbers by counting
        together = batch.take(pa.array(np.argsort(number, kind="stable")))
        try:
            if self._writer is None:
                self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), batch.schema)
            self._writer.write_batch(together)
        except OSError as error:
            raise self._failure(error) from error
        self._ends.append(np.cumsum(np.bincount(number, minlength=self.parts)))

    def part(self, number: int) -> list[pa.RecordBatch]:
        """The rows of one part, in the order they were added, at least one batch; they stay on disk until looked at."""
        whole = self._read()
        slices = [
            batch.slice(start, ends[number] - start)
            for batch, ends in zip(whole, self._ends, strict=True)
            if (start := int(ends[number - 1]) if number else 0) < ends[number]
        ]
        return slices or [whole[0].slice(0, 0)]

    def forget(self) -> None:
        """Give back the memory of what was looked at so far."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def _read(self) -> list[pa.RecordBatch]:
        if self._map is None:
            assert self._writer is not None
            try:
                self._writer.close()
                self._file.flush()
            except OSError as error:
                raise self._failure(error) from error
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pa.ipc.open_file(pa.py_buffer(self._map))
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        return self._batches

    def _failure(self, error: OSError) -> SpillFailed:
        return SpillFailed(
            f"Rows that do not fit in memory could not be put aside in {self._folder}: {error}.",
            hint="Free some space there, or set offline_store.temp_directory to a folder on a larger disk.",
        )
