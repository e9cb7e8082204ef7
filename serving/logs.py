"""Structured logs: one JSON object a line, each with the id of the request it is about."""

from __future__ import annotations

import logging
import logging.handlers
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

import orjson

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that is being worked on; threads that work for it are told too."""
_BYTES, _FILES = 20_000_000, 5
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, request id, and whatever `extra` brought."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if asked := request_id.get():
            line["request_id"] = asked
        line |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def write_to(path: Path) -> logging.Handler:
    """Write what the serving modules say to a file of this replica's own; returns its handler.

    A file that has grown large is put aside, and a new one begun.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_BYTES, backupCount=_FILES, delay=True)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


def stop_writing(handler: logging.Handler) -> None:
    """Close a handler of `write_to`."""
    logging.getLogger("serving").removeHandler(handler)
    handler.close()
