"""Scoring many vectors at once: in this process, or shared out over processes by Ray Data; the same bytes.

Serving's door to Ray Data; `serving.app` is its door to Ray Serve. Ray is imported when there is enough to share out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from asof.cluster import connect
from contracts.scorer import Scorer

Scoring = Callable[[Path, np.ndarray, np.ndarray], np.ndarray]
"""A bundle's graph, float32 [N, n] and object [N, t] to float32 [N, 1 + q]: see `Scorer.predict`."""
ROWS_AT_ONCE = 8_192
"""Bounds what a graph holds of its intermediate values."""
WORKERS = 2
_ROW = "row"


def in_process(model: Path, numbers: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Score here, some rows at a time."""
    scorer = Scorer(model)
    parts = [
        scorer.predict(numbers[first : first + ROWS_AT_ONCE], texts[first : first + ROWS_AT_ONCE])
        for first in range(0, len(numbers), ROWS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty((0, 1 + scorer.quantiles), np.float32)


def on_ray(model: Path, numbers: np.ndarray, texts: np.ndarray, *, workers: int = WORKERS) -> np.ndarray:
    """Score in `workers` processes of a Ray that is this process's own, on loopback, and ends with it.

    Every worker loads the graph once and takes blocks as it finishes others.

    Raises:
        RayTaskError and its kind: a worker could not load the graph, or died again and again.
    """
    ray = connect("local")
    import ray.data as data

    quiet = data.DataContext.get_current()
    quiet.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    blocks = [
        _block(first, numbers[first : first + ROWS_AT_ONCE], texts[first : first + ROWS_AT_ONCE])
        for first in range(0, len(numbers), ROWS_AT_ONCE)
    ]
    scored = data.from_arrow(blocks).map_batches(
        _Worker,
        fn_constructor_kwargs={"model": str(model), "width": numbers.shape[1]},
        batch_size=None,
        batch_format="pyarrow",
        concurrency=workers,
        num_cpus=1,
    )
    answered = pa.concat_tables(ray.get(scored.to_arrow_refs())).sort_by(_ROW)
    columns = [answered[name].to_numpy() for name in answered.column_names if name != _ROW]
    return np.column_stack(columns)


class _Worker:
    """A process of Ray Data's: one graph, loaded once."""

    def __init__(self, model: str, width: int) -> None:
        self._scorer = Scorer(Path(model))
        self._width = width

    def __call__(self, block: pa.Table) -> pa.Table:
        count = block.num_rows
        numbers = np.frombuffer(b"".join(block["numbers"].to_pylist()), np.float32).reshape(count, self._width)
        names = [name for name in block.column_names if name not in (_ROW, "numbers")]
        texts = np.empty((count, len(names)), object)
        for i, name in enumerate(names):
            texts[:, i] = block[name].to_pylist()
        answers = self._scorer.predict(numbers, texts)
        columns = {f"a{i:03d}": answers[:, i] for i in range(answers.shape[1])}
        return pa.table({_ROW: block[_ROW], **columns})


def _block(first: int, numbers: np.ndarray, texts: np.ndarray) -> pa.Table:
    columns: dict[str, Any] = {_ROW: np.arange(first, first + len(numbers))}
    columns["numbers"] = pa.array([row.tobytes() for row in np.ascontiguousarray(numbers)], pa.binary())
    columns |= {f"t{i:03d}": pa.array(texts[:, i], pa.string()) for i in range(texts.shape[1])}
    return pa.table(columns)
