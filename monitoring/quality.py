"""Data quality and freshness of the log's chunks: what is missing, what the reference never showed, how old it was."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from contracts.bundle import FeatureSpec
from monitoring.log_frame import CHUNK
from monitoring.report import Freshness, Quality


def quality(
    reference: pd.DataFrame, analysis: pd.DataFrame, features: Sequence[FeatureSpec]
) -> dict[int, tuple[Quality, ...]]:
    """Each chunk's shares of missing and unseen values, feature by feature, in the order of `features`."""
    parts: dict[str, tuple[float, pd.Series, pd.Series]] = {}
    for spec in features:
        usual, column = reference[spec.name], analysis[spec.name]
        present = column.notna()
        if spec.kind == "number":
            unseen = present & ((column < usual.min()) | (column > usual.max()))
        else:
            unseen = present & ~column.isin(usual.dropna().unique())
        by_chunk = pd.DataFrame({"present": present, "unseen": unseen}).groupby(analysis[CHUNK])
        counts, sizes = by_chunk.sum(), by_chunk.size()
        missing = (sizes - counts["present"]) / sizes
        share = counts["unseen"] / counts["present"].clip(lower=1)
        parts[spec.name] = (float(usual.isna().mean()) if len(usual) else 0.0, missing, share)
    return {
        int(chunk): tuple(
            Quality(name, float(missing[chunk]), usual, float(share[chunk]))
            for name, (usual, missing, share) in parts.items()
        )
        for chunk in np.unique(analysis[CHUNK])
    }


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
    with duckdb.connect() as connection:
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
