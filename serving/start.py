"""Start and stop serving on this machine: Ray, Serve and the application, on one loopback port.

    with start(project, data, port=8000, clock="system") as serving:
        httpx.get(f"{serving.url}/readyz")

Ray Serve's own HTTP proxy would cost ten times what a prediction does, so the replica itself listens (Serve's "direct
ingress"). Its port range is one port wide: the address stays the same when a replica is replaced.
"""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from contracts.errors import SkewlessError

HOST = "127.0.0.1"
READY_SECONDS = 120.0


class PortBusy(SkewlessError, OSError):
    """Another program listens where serving was to listen."""


class NotReady(SkewlessError, TimeoutError):
    """Serving started but did not become ready in time."""


def environment(port: int) -> dict[str, str]:
    """What Ray must find in its environment before it starts."""
    return {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),
        "RAY_SERVE_PORT_QUARANTINE_S": "0",  # no proxy remembers a replaced replica's port: there is none
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # in Ray's words: a node of its own, all of it on loopback
    }


class ServingHandle:
    """Running serving; stops it on leaving the `with` block."""

    def __init__(self, url: str) -> None:
        self.url = url
        """Base of every path, without a final slash."""

    def state(self) -> dict[str, Any]:
        """The body of `/readyz`: task to generation, champion, challenger, stage, share.

        Raises:
            OSError: nobody answers.
        """
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as response:
                found: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        return found

    def stop(self) -> None:
        """Drain, then end Serve and Ray and every process of theirs. Repeating it does nothing."""
        from serving import app

        app.shut_down()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(
    project: Path,
    data: Path,
    *,
    port: int,
    clock: str,
    tasks: Sequence[str] | None = None,
    ready_seconds: float = READY_SECONDS,
) -> ServingHandle:
    """Serve a project's tasks and wait until each has a version loaded.

    Args:
        project: folder with `tasks/`.
        data: the data root.
        port: on 127.0.0.1.
        clock: `system`, or `request` for replays.
        tasks: names to serve; all when None.
        ready_seconds: how long to wait.

    Raises:
        PortBusy: something listens on the port.
        NotReady: a task has no version to serve, or its version cannot be loaded; serving is stopped again.
    """
    _need_free(port)
    args = {"project": str(project), "data": str(data), "tasks": ",".join(tasks or ()), "clock": clock}
    with _environ(environment(port)):
        from serving import app

        try:
            app.launch(args, spare_port=_free_port())
            handle = ServingHandle(f"http://{HOST}:{port}")
            _wait(handle, ready_seconds)
        except BaseException:
            app.shut_down()
            raise
    return handle


def _wait(handle: ServingHandle, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    state: dict[str, Any] = {}
    while time.monotonic() < deadline:
        try:
            state = handle.state()
            if state["status"] == "ready":
                return
        except OSError as error:
            state = {"status": str(error)}
        time.sleep(0.05)
    raise NotReady(
        f"Serving is not ready after {seconds:g} s: {json.dumps(state.get('tasks', state))}.",
        hint="a task needs a deployed version: `skewless train TASK`, then `skewless rollout status TASK`.",
    )


def _need_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are winding down do not count
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortBusy(
                f"Port {port} on {HOST} is busy: {error.strerror}.",
                hint=f"stop what listens there (`ss -ltnp 'sport = :{port}'`), or serve with another --port.",
            ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _environ(wanted: dict[str, str]) -> Iterator[None]:
    """Set variables while Ray starts: its processes inherit them, this one gets its own back."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
