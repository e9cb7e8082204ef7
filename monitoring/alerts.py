"""The life of an alert: opened once, told to people, acknowledged with a note, resolved; and of its review.

Every step is an event of its own, never changed afterwards. An alert is resolved by a person, or by monitoring once
chunks that began after it was opened no longer show what it is about.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Connection, Engine, Insert, Integer, String, Table, insert, select, update

from contracts.errors import SkewlessError
from contracts.state import Instant, alerts, create_missing, metadata

alert_events = Table(
    "alert_events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("alert", Integer, nullable=False, index=True),
    Column("at", Instant, nullable=False),
    Column("what", String, nullable=False),  # opened | notified | not_notified | acknowledged | resolved
    Column("by", String, nullable=False),
    Column("note", String, nullable=False),
)
"""What happened to each alert."""

reviews = Table(
    "reviews",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("alert", Integer, nullable=False, index=True),
    Column("opened_at", Instant, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("done_at", Instant),
    Column("note", String),
)
"""When a person looks again whether performance still holds, and what they found."""

MONITOR = "monitor"
"""Who resolves an alert whose cause is gone."""
_ALERT, _EVENT, _REVIEW = alerts.c, alert_events.c, reviews.c


class UnknownAlert(SkewlessError, LookupError):
    """There is no alert with this number."""


class UnknownReview(SkewlessError, LookupError):
    """There is no open review with this number."""


class InvalidNote(SkewlessError, ValueError):
    """An acknowledgement that says nothing."""


def open_alert(
    connection: Connection, *, task: str, kind: str, message: str, evidence: dict[str, Any], now: datetime
) -> int | None:
    """Open an alert, inside the caller's transaction.

    Returns:
        Its number; None when one of this kind is open already, or a person resolved one on the very same evidence.
    """
    same_kind = (_ALERT.task == task) & (_ALERT.kind == kind)
    query = select(_ALERT.id, _ALERT.resolved_at, _ALERT.evidence).where(same_kind)
    for number, resolved, seen in connection.execute(query).all():
        if resolved is None or (seen == evidence and _resolved_by(connection, number) != MONITOR):
            return None
    row = insert(alerts).values(task=task, kind=kind, message=message, evidence=evidence, opened_at=now)
    number = _inserted(connection, row)
    _note(connection, number, "opened", MONITOR, "", now)
    return number


def open_review(connection: Connection, *, alert: int, due: datetime, now: datetime) -> int:
    """Ask for a review, inside the caller's transaction."""
    return _inserted(connection, insert(reviews).values(alert=alert, opened_at=now, due_at=due))


def resolve_what_passed(
    connection: Connection, task: str, seen: Collection[str], *, since: datetime, now: datetime
) -> list[int]:
    """Resolve open alerts of kinds that are not seen any more, inside the caller's transaction.

    Args:
        connection: in a transaction.
        task: whose.
        seen: kinds that are.
        since: where the chunks that were looked at begin: an alert opened later is left alone, they say nothing of it.
        now: the instant written down.
    """
    query = select(_ALERT.id, _ALERT.kind).where(
        _ALERT.task == task, _ALERT.resolved_at.is_(None), _ALERT.opened_at <= since
    )
    passed = [number for number, kind in connection.execute(query.order_by(_ALERT.id)).all() if kind not in seen]
    for number in passed:
        _resolve(connection, number, MONITOR, "chunks since it was opened no longer show it", now)
    return passed


def list_alerts(engine: Engine, task: str | None = None, *, open_only: bool = True) -> list[dict[str, Any]]:
    """Alerts, oldest first; of every task when none is named. Open means not resolved."""
    query = select(alerts).order_by(_ALERT.id)
    if task is not None:
        query = query.where(_ALERT.task == task)
    if open_only:
        query = query.where(_ALERT.resolved_at.is_(None))
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def list_reviews(engine: Engine, task: str | None = None, *, open_only: bool = True) -> list[dict[str, Any]]:
    """Reviews with the task and message of their alert, the one due first at the top; open means not done."""
    create_missing(engine)
    query = select(reviews, _ALERT.task, _ALERT.message).join(alerts, _ALERT.id == _REVIEW.alert)
    if task is not None:
        query = query.where(_ALERT.task == task)
    if open_only:
        query = query.where(_REVIEW.done_at.is_(None))
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query.order_by(_REVIEW.due_at, _REVIEW.id)).mappings()]


def read_events(engine: Engine, number: int) -> list[dict[str, Any]]:
    """What happened to an alert, oldest first."""
    create_missing(engine)
    with engine.connect() as connection:
        found = connection.execute(select(alert_events).where(_EVENT.alert == number).order_by(_EVENT.id)).mappings()
        return [dict(row) for row in found]


def acknowledge(engine: Engine, number: int, *, note: str, now: datetime, by: str = "operator") -> None:
    """A person has seen the alert and says what they make of it. The first acknowledgement stands.

    Raises:
        UnknownAlert: no such number.
        InvalidNote: the note is empty.
    """
    note = _said(f"Alert {number}", note)
    create_missing(engine)
    with engine.begin() as connection:
        _check_known(connection, number)
        first = (_ALERT.id == number) & _ALERT.acknowledged_at.is_(None)
        if connection.execute(update(alerts).where(first).values(acknowledged_at=now, note=note)).rowcount:
            _note(connection, number, "acknowledged", by, note, now)


def resolve(engine: Engine, number: int, *, now: datetime, note: str = "", by: str = "operator") -> None:
    """The alert's cause is gone; its review, if it has one, is done. Resolving again changes nothing.

    Raises:
        UnknownAlert: no such number.
    """
    create_missing(engine)
    with engine.begin() as connection:
        _check_known(connection, number)
        _resolve(connection, number, by, note.strip(), now)


def finish_review(engine: Engine, number: int, *, note: str, now: datetime) -> None:
    """A person has reviewed, and says what they found.

    Raises:
        UnknownReview: no open review has this number.
        InvalidNote: the note is empty.
    """
    note = _said(f"Review {number}", note)
    create_missing(engine)
    with engine.begin() as connection:
        mine = (_REVIEW.id == number) & _REVIEW.done_at.is_(None)
        if not connection.execute(update(reviews).where(mine).values(done_at=now, note=note)).rowcount:
            waiting = connection.execute(select(_REVIEW.id).where(_REVIEW.done_at.is_(None)).order_by(_REVIEW.id))
            shown = ", ".join(str(each) for each in waiting.scalars()) or "none"
            raise UnknownReview(f"There is no open review {number}.", hint=f"open reviews: {shown}.")


def untold(engine: Engine, task: str) -> list[dict[str, Any]]:
    """Open alerts that nobody was notified of yet, oldest first."""
    create_missing(engine)
    told = select(_EVENT.alert).where(_EVENT.what == "notified")
    query = select(alerts).where(_ALERT.task == task, _ALERT.resolved_at.is_(None), _ALERT.id.not_in(told))
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query.order_by(_ALERT.id)).mappings()]


def note_told(engine: Engine, number: int, *, told: bool, how: str, now: datetime) -> None:
    """Write down that people were notified of an alert, or could not be."""
    with engine.begin() as connection:
        _note(connection, number, "notified" if told else "not_notified", MONITOR, how, now)


def _resolve(connection: Connection, number: int, by: str, note: str, now: datetime) -> None:
    first = (_ALERT.id == number) & _ALERT.resolved_at.is_(None)
    if connection.execute(update(alerts).where(first).values(resolved_at=now)).rowcount:
        _note(connection, number, "resolved", by, note, now)
        open_review = (_REVIEW.alert == number) & _REVIEW.done_at.is_(None)
        closed = {"done_at": now, "note": f"its alert was resolved by {by}"}
        connection.execute(update(reviews).where(open_review).values(closed))


def _resolved_by(connection: Connection, number: int) -> str | None:
    query = select(_EVENT.by).where(_EVENT.alert == number, _EVENT.what == "resolved").order_by(_EVENT.id.desc())
    return connection.execute(query.limit(1)).scalar_one_or_none()


def _note(connection: Connection, number: int, what: str, by: str, note: str, now: datetime) -> None:
    connection.execute(insert(alert_events).values(alert=number, at=now, what=what, by=by, note=note))


def _inserted(connection: Connection, row: Insert) -> int:
    key = connection.execute(row).inserted_primary_key
    assert key is not None  # every table here numbers its rows
    return int(key[0])


def _said(whose: str, note: str) -> str:
    if not note.strip():
        raise InvalidNote(f"{whose} needs a note.", hint="say what you found, or what you will do about it.")
    return note.strip()


def _check_known(connection: Connection, number: int) -> None:
    if connection.execute(select(_ALERT.id).where(_ALERT.id == number)).one_or_none() is None:
        known = connection.execute(select(_ALERT.id).where(_ALERT.resolved_at.is_(None)).order_by(_ALERT.id))
        open_now = ", ".join(str(each) for each in known.scalars()) or "none"
        raise UnknownAlert(f"There is no alert {number}.", hint=f"open alerts: {open_now}.")
