"""Start and stop serving on this machine: Ray, Serve and the application, on one loopback port.

    with start(project, data, port=8000, clock="system") as serving:
        httpx.get(f"{serving.url}/readyz")

Ray Serve's own HTTP proxy would cost ten times what a prediction does, so the replica itself listens (Serve's "direct
ingress"). Its port range is one port wide: the address stays the same when a replica is replaced. Ray lives in a child
process (`serving.host`) with its own environment and a log file for all it has to say; when this process ends, however
it ends, the child and everything of Ray's ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from contracts.errors import SkewlessError
from contracts.task import load_task
from serving.access import VARIABLES, Access, AccessSettings, need_tokens
from serving.host import FAILED

HOST = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
READY_SECONDS = 180.0
_STOP_SECONDS = 45.0
_SHOWN_LINES = 5


class PortBusy(SkewlessError, OSError):
    """Another program listens where serving was to listen."""


class NotServing(SkewlessError, RuntimeError):
    """Serving could not be started, or did not become ready in time."""


def environment(port: int) -> dict[str, str]:
    """What Ray must find in its environment before it starts."""
    return {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 1),
        "RAY_SERVE_PORT_QUARANTINE_S": "0",  # no proxy remembers a replaced replica's port: there is none
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # in Ray's words: a node by itself, all of it on loopback
        "RAY_AUTH_MODE": "token",  # other users of this machine reach loopback too
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # Ray would write one into the home folder otherwise
        "RAY_USAGE_STATS_ENABLED": "0",
    }


class ServingHandle:
    """Running serving; stops it on leaving the `with` block."""

    def __init__(self, url: str, grpc: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url = url
        """Base of every path, without a final slash."""
        self.grpc = grpc
        """Where gRPC is answered, `host:port`; empty when it is not."""
        self.log = log
        """What Ray and the replicas had to say."""
        self._process = process

    def state(self) -> dict[str, Any]:
        """The body of `/readyz`: under `tasks`, each task's generation, champion, challenger, stage and share.

        Raises:
            OSError: nobody answers.
        """
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as response:
                found: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        return found

    def is_alive(self) -> bool:
        """Whether the process that holds Ray still runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Drain, then end Serve and Ray and every process of theirs. Repeating it does nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # its own process group: started by us, holding nobody else
            self._process.wait()

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
    host: str = HOST,
    grpc_port: int | None = None,
    tasks: Sequence[str] | None = None,
    guarded: bool = True,
    console: str = "",
    ready_seconds: float = READY_SECONDS,
) -> ServingHandle:
    """Serve a project's tasks and wait until each has a version loaded.

    Args:
        project: folder with `tasks/`.
        data: the data root.
        port: on `host`.
        clock: `system`, or `request` for replays.
        host: address to answer on.
        grpc_port: on `host`, for gRPC; none when None.
        tasks: names to serve; all when None.
        guarded: whether the tokens that the environment names are asked for; a run that asks itself needs none.
        console: `module:function` of the application below `/console`, where administration asks for a token.
        ready_seconds: how long to wait.

    Raises:
        TaskError: a task file is wrong.
        AccessError: others can reach `host` and the environment names no token, or names one that cannot be used.
        PortBusy: something listens on a port.
        NotServing: serving could not start, a task has no version to serve, or its version cannot be loaded.
    """
    for name in tasks or ():
        load_task(project / "tasks" / f"{name}.toml")
    own = {name: value for name, value in os.environ.items() if guarded or not name.startswith(VARIABLES)}
    need_tokens(host, Access(AccessSettings.of(own)))
    _need_free(host, port)
    if grpc_port is not None:
        _need_free(host, grpc_port, "--grpc-port")
    args = {
        "project": str(project.resolve()),
        "data": str(data.resolve()),
        "tasks": ",".join(tasks or ()),
        "clock": clock,
        "grpc": "" if grpc_port is None else f"{host}:{grpc_port}",
        "console": console,
    }
    asked = {"args": args, "host": host, "spare_port": _free_port()}
    log = data / "logs" / "serving.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.host", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=own | environment(port),
            start_new_session=True,
        )
    handle = ServingHandle(f"http://{HOST if host == EVERYWHERE else host}:{port}", args["grpc"], process, log)
    try:
        _wait(handle, ready_seconds)
    except BaseException:
        handle.stop()
        raise
    return handle


def _wait(handle: ServingHandle, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    state: dict[str, Any] = {"status": "no answer"}
    while time.monotonic() < deadline:
        if not handle.is_alive():
            raise _failure(handle.log)
        with contextlib.suppress(OSError):
            state = handle.state()
            if state["status"] == "ready":
                return
        time.sleep(0.05)
    raise NotServing(
        f"Serving is not ready after {seconds:g} s: {json.dumps(state.get('tasks', state))}.",
        hint=f"a task needs a deployed version (`skewless retrain TASK`); {handle.log} holds what Ray had to say.",
    )


def _failure(log: Path) -> NotServing:
    """Why the host ended: what it said last."""
    lines = log.read_text(errors="replace").strip().splitlines()
    for line in lines:
        if line.startswith(FAILED):
            told = json.loads(line.removeprefix(FAILED))
            return NotServing(told["fact"], hint=told["hint"] or f"{log} holds the whole story.")
    return NotServing(
        f"Serving ended before it was ready: {' / '.join(lines[-_SHOWN_LINES:])}", hint=f"{log} holds the whole story."
    )


def _need_free(host: str, port: int, option: str = "--port") -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are winding down do not count
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            raise PortBusy(
                f"Port {port} on {host} is busy: {error.strerror}.",
                hint=f"stop what listens there (`ss -ltnp 'sport = :{port}'`), or serve on another port (`{option}`).",
            ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
