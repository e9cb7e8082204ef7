"""The life of an alert: opened once, acknowledged with a note, resolved."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from contracts.errors import SkewlessError
from contracts.state import alerts

_ALERT = alerts.c


class UnknownAlert(SkewlessError, LookupError):
    """There is no alert with this number."""


class InvalidNote(SkewlessError, ValueError):
    """An acknowledgement that says nothing."""


def open_alert(
    connection: Connection, *, task: str, kind: str, message: str, evidence: dict[str, Any], now: datetime
) -> int | None:
    """Open an alert, inside the caller's transaction.

    Returns:
        Its number; None when one of this kind is open already, or was resolved on the very same evidence: a person has
        seen it.
    """
    same_kind = (_ALERT.task == task) & (_ALERT.kind == kind)
    query = select(_ALERT.resolved_at, _ALERT.evidence).where(same_kind)
    if any(resolved is None or seen == evidence for resolved, seen in connection.execute(query)):
        return None
    row = insert(alerts).values(task=task, kind=kind, message=message, evidence=evidence, opened_at=now)
    (number,) = connection.execute(row).inserted_primary_key or (None,)
    return number


def list_alerts(engine: Engine, task: str | None = None, *, open_only: bool = True) -> list[dict[str, Any]]:
    """Alerts, oldest first; of every task when none is named. Open means not resolved."""
    query = select(alerts).order_by(_ALERT.id)
    if task is not None:
        query = query.where(_ALERT.task == task)
    if open_only:
        query = query.where(_ALERT.resolved_at.is_(None))
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def acknowledge(engine: Engine, number: int, *, note: str, now: datetime) -> None:
    """A person has seen the alert and says what they make of it. The first acknowledgement stands.

    Raises:
        UnknownAlert: no such number.
        InvalidNote: the note is empty.
    """
    if not note.strip():
        raise InvalidNote(f"Alert {number} needs a note.", hint="say what you found, or what you will do about it.")
    _move(engine, number, "acknowledged_at", acknowledged_at=now, note=note.strip())


def resolve(engine: Engine, number: int, *, now: datetime) -> None:
    """The alert's cause is gone. Resolving again changes nothing. Raises UnknownAlert."""
    _move(engine, number, "resolved_at", resolved_at=now)


def _move(engine: Engine, number: int, once: str, **values: Any) -> None:
    with engine.begin() as connection:
        if connection.execute(select(_ALERT.id).where(_ALERT.id == number)).one_or_none() is None:
            known = connection.execute(select(_ALERT.id).where(_ALERT.resolved_at.is_(None)).order_by(_ALERT.id))
            open_now = ", ".join(str(each) for each in known.scalars()) or "none"
            raise UnknownAlert(f"There is no alert {number}.", hint=f"open alerts: {open_now}.")
        connection.execute(update(alerts).where((_ALERT.id == number) & _ALERT[once].is_(None)).values(**values))
