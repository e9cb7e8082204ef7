"""What all commands share: how instants are read, which options repeat, and how an error is told."""

from __future__ import annotations

import errno
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import wraps
from typing import Any

import click

from contracts.clock import parse_instant
from contracts.duration import parse_duration
from contracts.errors import SkewlessError
from loop.terminal import print_error


class _Instant(click.ParamType):
    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """ISO 8601 to an instant in UTC; a missing zone means UTC."""
        try:
            return value if isinstance(value, datetime) else parse_instant(str(value))
        except ValueError as error:
            self.fail(f"{error}; write 2013-04-01 or 2013-04-01T12:00:00+00:00.", param, ctx)


class _Span(click.ParamType):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """As task files write it, such as 1h or 7d; whole hours."""
        try:
            found = parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        assert isinstance(found, timedelta)
        if found < timedelta(hours=1) or found % timedelta(hours=1):
            self.fail("must be whole hours, 1h at least.", param, ctx)
        return found


class _Words(click.ParamType):
    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """What goes on record for others to read; blank would say nothing."""
        if not str(value).strip():
            self.fail("it goes on record, and must say something.", param, ctx)
        return str(value)


INSTANT = _Instant()
WORDS = _Words()
SPAN = _Span()
as_json = click.option("--json", "json_", is_flag=True, help="Print one JSON object instead of tables.")
task_argument = click.argument("task", required=False)
as_of = click.option("--as-of", type=INSTANT, help="Pretend it is this instant (UTC); default: now.")


def interruption() -> threading.Event:
    """Set by Ctrl-C or SIGTERM from now on: for a command that goes on until then."""
    import polars  # noqa: F401  # its import takes SIGINT for itself: after this one it could not be taken away again

    interrupted = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: interrupted.set())
    return interrupted


def told(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an error that a person can act on into one screen and its exit status."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:  # click would end with 1, which says that the answer is no
            click.echo("interrupted", err=True)
            sys.exit(_INTERRUPTED)
        except Exception as error:
            text = _for_a_person(error)
            if text is None:
                raise
            status = error.exit_status if isinstance(error, SkewlessError) else 2
        print_error(text)
        sys.exit(status)

    return wrapper


_INTERRUPTED = 128 + 2
"""What shells expect of a program that Ctrl-C (SIGINT, 2) ended."""
_OF_THE_DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST}
_DISK_HINT = "Hint: the project's data folder must be a folder this user can write to, with room on its disk."
_SERVER_HINT = "Hint: see that the database server in skewless.toml or feature_store.yaml answers, then try again."


def _for_a_person(error: Exception) -> str | None:
    """What to print; None for an error that only a programmer can do something about.

    Classes of packages that take long to import are looked up among what is loaded: nobody else can have raised them.
    """
    asof, sqlalchemy = sys.modules.get("asof.errors"), sys.modules.get("sqlalchemy.exc")
    if isinstance(error, SkewlessError) or (asof is not None and isinstance(error, asof.AsofError)):
        return str(error)
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}.\n\n{_DISK_HINT}"
    if sqlalchemy is not None and isinstance(error, sqlalchemy.OperationalError):
        hint = _DISK_HINT if isinstance(error.orig, sqlite3.Error) else _SERVER_HINT
        return f"A database of this project cannot be used: {' '.join(str(error.orig).split())}.\n\n{hint}"
    return None
