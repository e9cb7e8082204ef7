"""The online stores that benchmarks compare on: each a server of its own where it needs one, for as long as it is used.

Each gives the `online_store` section of a `feature_store.yaml`.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[dict[str, str]]:
    yield {"type": "sqlite", "path": f"{folder}.db"}


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[dict[str, str]]:
    binary = shutil.which("redis-server")
    if binary is None:
        sys.exit(
            "redis-server is not on PATH: install it (Debian: apt-get install redis-server), or name other stores."
        )
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.02)
        yield {"type": "redis", "connection_string": f"127.0.0.1:{port}"}
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[dict[str, str]]:
    try:
        import pgserver
    except ImportError:
        sys.exit("pgserver is not installed: `make setup`, or name other stores.")
    server = pgserver.get_server(folder)
    try:
        yield {"type": "postgres", "host": str(folder), "database": "postgres", "user": "postgres", "password": ""}
    finally:
        server.cleanup()


STORES = {"sqlite": sqlite, "redis": redis, "postgres": postgres}


def asked_for(names: list[str]) -> list[str]:
    """The stores named on the command line, all of them when none is; their servers end with this program."""
    unknown = [name for name in names if name not in STORES]
    if unknown:
        sys.exit(f"Unknown store {unknown[0]!r}; known are {', '.join(STORES)}.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return names or list(STORES)
