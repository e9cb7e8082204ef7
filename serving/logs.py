"""Structured logs: one JSON object a line, each with the id of the request it is about."""

from __future__ import annotations

import fcntl
import logging
import logging.handlers
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import IO

import orjson

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that is being worked on; threads that work for it are told too."""
_BYTES, _FILES = 20_000_000, 5
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, logger, process, message, request id, and whatever `extra` brought."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if asked := request_id.get():
            line["request_id"] = asked
        line |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class _OwnFile(logging.handlers.RotatingFileHandler):
    """A file with a lock beside it, which is let go of when the handler is closed or its process ends."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        super().__init__(path, maxBytes=_BYTES, backupCount=_FILES, delay=True)
        self._held = lock
        self.setFormatter(JsonFormatter())

    def close(self) -> None:
        """Give the number back."""
        super().close()
        self._held.close()


def write_to(folder: Path) -> logging.Handler:
    """Write what the serving modules say to a file of this replica's own; returns its handler.

    The file is `replica-N.jsonl`, with the lowest number that no living replica has: it goes on where an earlier one
    ended, so that there are never more files than replicas at once. One that has grown large is put aside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = next(found for number in count(1) if (found := _own(folder / f"replica-{number}.jsonl")) is not None)
    logger = logging.getLogger("serving")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


def _own(path: Path) -> _OwnFile | None:
    lock = path.with_suffix(".lock").open("a")
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _OwnFile(path, lock)
    lock.close()
    return None


def stop_writing(handler: logging.Handler) -> None:
    """Close a handler of `write_to`."""
    logging.getLogger("serving").removeHandler(handler)
    handler.close()
