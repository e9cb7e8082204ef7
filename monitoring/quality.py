"""Data quality and freshness of the log's chunks: what is missing, repeated, or was never seen in the
reference, and how old it was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from contracts.bundle import FeatureSpec
from monitoring.log_frame import CHUNK
from monitoring.repeats import Repeats
from monitoring.report import Freshness, Quality
from monitoring.scratch import scratch


def quality(
    reference: pd.DataFrame, analysis: pd.DataFrame, features: Sequence[FeatureSpec], repeats: Repeats
) -> dict[int, tuple[Quality, ...]]:
    """Each chunk's shares of missing, unseen and repeated values, feature by feature, in the order of `features`."""
    chunks, place, sizes = np.unique(analysis[CHUNK], return_inverse=True, return_counts=True)
    rows_of = [np.flatnonzero(place == at) for at in range(len(chunks))]
    by_feature = []
    for spec in features:
        usual, column = reference[spec.name], analysis[spec.name]
        present = column.notna()
        if spec.kind == "number":
            unseen = present & ((column < usual.min()) | (column > usual.max()))
        else:
            unseen = present & ~column.isin(usual.dropna().unique())
        there, new = (np.bincount(place[rows.to_numpy()], minlength=len(chunks)) for rows in (present, unseen))
        missing, share = (sizes - there) / sizes, new / np.maximum(there, 1)
        before = float(usual.isna().mean()) if len(usual) else 0.0
        values = column.to_numpy()
        heaps = [repeats.excess(spec.name, values[rows]) for rows in rows_of]
        figures = zip(missing.tolist(), share.tolist(), heaps, strict=True)
        by_feature.append([Quality(spec.name, lost, before, strange, heap) for lost, strange, heap in figures])
    return {chunk: tuple(each[at] for each in by_feature) for at, chunk in enumerate(chunks.tolist())}


def freshness(log: pa.Table, chunks: np.ndarray) -> dict[int, tuple[Freshness, ...]]:
    """Ages of the rows that views answered with, per chunk and view, from the log's `view_times`.

    Args:
        log: rows of the prediction log.
        chunks: the chunk of each row.
    """
    if not log.num_rows:
        return {}
    stamps = log["event_timestamp"].cast(pa.int64()).to_numpy()
    rows = pa.table({"chunk": pa.array(chunks, pa.int64()), "asked": stamps, "times": log["view_times"]})
    with scratch() as connection:
        connection.register("logged", rows)
        found = connection.execute(
            """
            with answers as (
                select chunk, asked, unnest(map_entries(try_cast(times::json as map(varchar, bigint)))) as answer
                from logged
            )
            select chunk, answer.key, median((asked - answer.value) / 1e6), max((asked - answer.value) / 1e6),
                   1 - count(answer.value) / count(*)
            from answers group by all order by chunk, answer.key
            """
        ).fetchall()
    by_chunk: dict[int, list[Freshness]] = {}
    for chunk, view, median, oldest, absent in found:
        by_chunk.setdefault(chunk, []).append(Freshness(view, median, oldest, absent))
    return {chunk: tuple(views) for chunk, views in by_chunk.items()}
