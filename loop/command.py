"""What all commands share: how instants are read, which options repeat, and how an error is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any

import click

from contracts.clock import parse_instant
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


INSTANT = _Instant()
as_json = click.option("--json", "json_", is_flag=True, help="Print one JSON object instead of tables.")
task_argument = click.argument("task", required=False)
as_of = click.option("--as-of", type=INSTANT, help="Pretend it is this instant (UTC); default: now.")


def told(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an error that a person can act on into one screen and exit status 2."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except SkewlessError as error:
            failure: Exception = error
        except Exception as error:
            asof = sys.modules.get("asof.errors")
            if asof is None or not isinstance(error, asof.AsofError):
                raise
            failure = error
        print_error(str(failure))
        sys.exit(2)

    return wrapper
