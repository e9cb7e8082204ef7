"""Labels joined to logged rows, and the account of those that could not be: refused ones are counted, never used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.spine import GROUP
from monitoring.scratch import scratch

_GIVEN = """
create temp table given as
select id, label, epoch_us(label_known_at) as known_at, position, id is null as nameless,
    label is null or not isfinite(label) or ($binary and label not in (0, 1)) as invalid
from labels
"""
_CASES = """
create temp table cases as
select id, count(*) as told, min(label) as label, max(label) as other, min(known_at) as known_at,
    arg_min(position, (known_at, position)) as position
from given where not nameless and not invalid group by id
"""
_JOINED = """
select case when label = other and known_at > asked then label end as label, position,
    coalesce(label = other and known_at <= asked, false) as late
from logged left join cases on case_id = id order by row
"""
_COUNTED = """
select count(*), coalesce(sum(told - 1) filter (label = other), 0)::bigint, count(*) filter (label <> other),
    count(*) filter (id not in (select case_id from logged where case_id is not null)),
    (select count(*) from given where invalid and not nameless), (select count(*) from given where nameless)
from cases
"""


@dataclass(frozen=True, slots=True)
class LabelAccount:
    """What became of the labels. Refused ones are counted here and used nowhere."""

    known: int
    """Labels known at the time of asking, one a case."""
    joined: int
    """Predictions that got a label."""
    unknown_case: int
    """Labels of cases that were never asked about."""
    duplicate: int
    """Repetitions of a label that say the same."""
    contradictory: int
    """Cases whose labels contradict each other; none of them is used."""
    before_prediction: int
    """Predictions asked for after their outcome was known; not used, such a score proves nothing."""
    without_case: int
    """Predictions logged without a case id: no label can reach them."""
    invalid: int = 0
    """Labels that are not numbers, or of a binary task neither 0 nor 1."""
    nameless: int = 0
    """Labels without a case id."""

    def to_dict(self) -> dict[str, int]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What came of N logged rows."""

    label: np.ndarray
    """float64 [N]; NaN where nothing is known, or nothing that may be used."""
    groups: dict[str, np.ndarray]
    """object [N] of str or None, by slice column: what the spine says of the row's case."""
    account: LabelAccount

    def seal(self, rows: slice) -> str:
        """Hash of what is known of some rows: another label, or one more, changes it."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.label[rows]).tobytes(), digest_size=12)
        for name in sorted(self.groups):
            digest.update("\x1f".join(f"{value}" for value in self.groups[name][rows]).encode())
        return digest.hexdigest()


def join_labels(log: pa.Table, labels: pa.Table, *, as_of: datetime, binary: bool = True) -> Outcomes:
    """The label of each logged row, NaN where it is unknown at `as_of`, and the account of all labels.

    Args:
        log: rows with `case_id` and `event_timestamp`.
        labels: as `contracts.spine.labels_known` returns them; repetitions allowed.
        as_of: labels known later are not looked at.
        binary: whether a label is 0 or 1.
    """
    known = labels.filter(pc.less_equal(labels["label_known_at"], pa.scalar(as_of, pa.timestamp("us", tz="UTC"))))
    numbered = known.append_column("position", pa.array(np.arange(known.num_rows)))
    rows = pa.table(
        {
            "row": pa.array(np.arange(log.num_rows)),
            "case_id": log["case_id"],
            "asked": log["event_timestamp"].cast(pa.int64()),
        }
    )
    with scratch() as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.register("labels", numbered.select(["id", "label", "label_known_at", "position"]))
        connection.register("logged", rows)
        connection.execute(_GIVEN, {"binary": binary})
        connection.execute(_CASES)
        joined = connection.sql(_JOINED).to_arrow_table()
        known_cases, repeated, disputed, unknown, invalid, nameless = connection.execute(_COUNTED).fetchall()[0]
    label = joined["label"].to_numpy(zero_copy_only=False).astype(np.float64)
    account = LabelAccount(
        known=known_cases,
        joined=int(np.isfinite(label).sum()),
        unknown_case=unknown,
        duplicate=repeated,
        contradictory=disputed,
        before_prediction=int(pc.sum(joined["late"]).as_py() or 0),
        without_case=log["case_id"].null_count,
        invalid=invalid,
        nameless=nameless,
    )
    return Outcomes(label, _groups(known, joined["position"]), account)


def _groups(labels: pa.Table, position: pa.ChunkedArray) -> dict[str, np.ndarray]:
    names: Sequence[str] = [name for name in labels.column_names if name.startswith(GROUP)]
    return {
        name.removeprefix(GROUP): labels[name].take(position.combine_chunks()).to_numpy(zero_copy_only=False)
        for name in names
    }
