"""How long outcomes take to become known: what may be held against a version, and what has yet to come."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa

USUAL = 0.99
"""Share of labels that have arrived once labels have had "the time they usually take"."""


def usual_wait(labels: pa.Table) -> timedelta | None:
    """The time within which 99 of 100 labels came after their question; None where there is no label.

    Args:
        labels: as `contracts.spine.labels_known` returns them, of a time whose labels have all arrived.
    """
    if not labels.num_rows:
        return None
    known, asked = (labels[name].cast(pa.int64()).to_numpy() for name in ("label_known_at", "event_timestamp"))
    return timedelta(microseconds=int(np.quantile(known - asked, USUAL)))
