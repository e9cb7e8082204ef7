"""Why a view gave nobody anything: its rows are old enough, and all became known too late.

A backfill stamps each row with the day it was loaded. That is right, and it hides the rows from every earlier question;
whoever asks sees nulls, and should be told of the one column that explains them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from asof.clockwork import from_micros
from asof.engine import Answer, Spine
from asof.session import Session


def explain(answers: Sequence[Answer], spine: Spine, session: Session) -> list[str]:
    """A sentence for each view of which nothing was known at any time asked about, though it had happened.

    Args:
        answers: of `as_of`.
        spine: what was asked.
        session: reads the times of the sources of such views, and of no other.
    """
    if not spine.asked.any():
        return []
    last = int(spine.at[spine.asked].max())
    sentences = []
    for answer in answers:
        source = answer.view.source
        if source.created is None or not all(map(_says_nothing, answer.features.columns)):
            continue
        scan = session.scan(source)
        event, created = (scan.micros(name, "time") for name in (source.timestamp, source.created))
        row = session.arrow(
            f"select min({event}) as event, min({created}) as created from {scan.relation} s"
        ).to_pylist()
        happened, known = row[0]["event"], row[0]["created"]
        if happened is not None and known is not None and happened <= last < known:
            sentences.append(
                f"view {answer.view.name!r} has no row that was known at any time asked about: the first "
                f"{source.created!r} is {_said(known)}, the last time asked about {_said(last)}. If the rows were "
                "loaded later than they were known, correct that column or leave it out of the source "
                "(created_timestamp_column)"
            )
    return sentences


def _says_nothing(column: pa.ChunkedArray) -> bool:
    """Whether all are null, or what an empty window holds: zero."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return not pc.any(pc.not_equal(column, pa.scalar(0, column.type))).as_py()
    return bool(column.null_count == len(column))


def _said(micros: int) -> str:
    return from_micros(micros).strftime("%Y-%m-%d %H:%M:%S UTC")
