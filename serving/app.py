"""Serving's one door to Ray: the application, and the Ray instance it runs in when nobody else brings one.

    serve run serving.app:build project=. clock=system         # see serving/serve.yaml for the environment

One deployment holds features, models and log in one process: a hop between deployments costs more than all of them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

from contracts.clock import SystemClock
from contracts.errors import SkewlessError
from serving.access import need_tokens
from serving.requests import ClockMode

NAME = "skewless"
HOST = "127.0.0.1"
_CLOCKS: tuple[ClockMode, ...] = ("system", "request")
_DEPLOYMENT = "predictions"
_RAISED = re.compile(r"(?m)^(?:[a-z_]\w*\.)+[A-Z]\w*: ")
"""What stands before an exception's message in a traceback."""
_ARGUMENTS = ("project", "data", "tasks", "clock", "grpc", "console")


class CannotServe(SkewlessError, RuntimeError):
    """A replica could not be built; carries what it said."""


class BadArguments(SkewlessError, ValueError):
    """The application was built with arguments it does not know."""


@serve.deployment(
    name=_DEPLOYMENT,
    max_constructor_retry_count=1,  # a wrong task or registry does not heal by trying again
    max_ongoing_requests=600,  # above the application's own limit, which answers with Retry-After
    ray_actor_options={"num_cpus": 0.5},
    health_check_period_s=2,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=20,
    logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
)
@serve.ingress()
class Predictions:
    """A replica: answers for all tasks of a project."""

    def __init__(
        self, project: str, data: str, tasks: list[str], clock: ClockMode, grpc: str, console: str, alone: bool
    ) -> None:
        from serving.replica import Replica  # Feast takes seconds to import, and only a replica needs it

        if alone:
            _keep_to_this_machine()
        # Serve puts a request id on every answer itself.
        self._replica = Replica(
            Path(project),
            Path(data),
            tasks,
            SystemClock(),
            clock,
            grpc,
            environment=os.environ,
            echoes=False,
            console=console,
        )
        _hear_of_the_end(self._replica.drain)
        for host in (_http_host(), grpc.rpartition(":")[0] or HOST):
            need_tokens(host, self._replica.access)

    def __serve_build_asgi_app__(self) -> Any:
        return self._replica.asgi

    def check_health(self) -> None:
        """Raise when a thread of the replica has died: Ray then replaces it."""
        self._replica.check()

    def __del__(self) -> None:
        self._replica.close()


def build(args: Mapping[str, str]) -> Application:
    """The Serve application.

    Args:
        args: `project` (folder with `tasks/`, default the current one), `data` (default `<project>/data`), `tasks`
            (comma-separated names, default all), `clock` (`system`, or `request` for replays), `grpc` (`host:port`
            where each replica answers gRPC too; nowhere by default), `console` (`module:function` of what is below
            `/console` where administration asks for a token; nothing by default).

    Raises:
        BadArguments: an unknown name or clock, or an address without a port.
    """
    return _application(args, alone=False)


def _application(args: Mapping[str, str], *, alone: bool) -> Application:
    """`alone`: whether Ray runs for this application only, on one machine and one port."""
    unknown = sorted(set(args) - set(_ARGUMENTS))
    if unknown:
        raise BadArguments(f"Unknown argument {unknown[0]!r}.", hint=f"known are {', '.join(_ARGUMENTS)}.")
    clock = args.get("clock", "system")
    if clock not in _CLOCKS:
        raise BadArguments(f"clock is {clock!r}.", hint=f"one of {', '.join(_CLOCKS)}.")
    grpc = args.get("grpc") or ""
    if grpc and not grpc.rpartition(":")[2].isdigit():
        raise BadArguments(f"grpc is {grpc!r}.", hint="an address, such as 127.0.0.1:8001.")
    project = Path(args.get("project") or ".").resolve()
    data = Path(args.get("data") or project / "data").resolve()
    tasks = [name for name in args.get("tasks", "").split(",") if name]
    deployment: Any = Predictions  # the decorators make it one
    application: Application = deployment.bind(
        str(project), str(data), tasks, clock, grpc, args.get("console") or "", alone
    )
    return application


def launch(args: Mapping[str, str], *, host: str = HOST, spare_port: int) -> None:
    """Start Ray and the application in it; returns when the application runs.

    Args:
        args: of `build`.
        host: address to answer on. Ray itself keeps to this machine.
        spare_port: for Serve's proxy, which runs but is not on the way of a request.
    """
    ray.init(
        address="local",  # never somebody else's cluster
        num_cpus=2,
        object_store_memory=80 * 1024 * 1024,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address=HOST,
    )
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=host, port=spare_port, keep_alive_timeout_s=75),
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    application = _application(args, alone=True)
    try:
        serve.run(application, name=NAME, route_prefix="/", logging_config=LoggingConfig(log_level="WARNING"))
    except RuntimeError as error:
        running = serve.status().applications.get(NAME)
        replica = running.deployments.get(_DEPLOYMENT) if running else None
        raise _told((replica and replica.message) or str(error)) from error


def _told(message: str) -> CannotServe:
    """What the replica itself said, out of the traceback that Serve reports."""
    fact, _, hint = _RAISED.split(message)[-1].partition("\n\nHint: ")
    return CannotServe(fact.strip(), hint=hint.strip())


def shut_down() -> None:
    """Drain the application and end Ray. Harmless when nothing runs."""
    if ray.is_initialized():
        try:
            serve.shutdown()
        finally:
            ray.shutdown()


def _http_host() -> str:
    """Where Serve lets replicas and proxies listen."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    host: str = client.http_config.host or HOST
    return host


def _hear_of_the_end(drain: Callable[[], None]) -> None:
    """Be told when Serve begins to shut this replica down: it goes on answering for a while, and is to say so.

    Serve tells its own health check only; its constructor for user code knows no such hook.
    """
    from ray.serve._private import replica

    serving: Any = replica.Replica
    shut_down = serving.perform_graceful_shutdown

    async def announced(self: Any) -> None:
        drain()
        await shut_down(self)

    serving.perform_graceful_shutdown = announced


def _keep_to_this_machine() -> None:
    """Change two things in this replica for which Ray has no option.

    The HTTP port may be bound again while connections of a killed replica wind down: with one port, the replacement
    could not start for a minute otherwise. And the port for calls between deployments, which nobody makes here, listens
    on loopback instead of on every interface.
    """
    from ray.serve._private import replica

    listen, add_port = replica.start_asgi_http_server, replica.add_port_to_grpc_server

    async def listen_again(*args: Any, **options: Any) -> Any:
        return await listen(*args, **options | {"enable_so_reuseport": True})

    def on_loopback(server: Any, address: str) -> int:
        port: int = add_port(server, address.replace("[::]", HOST))
        return port

    replica.start_asgi_http_server = listen_again
    replica.add_port_to_grpc_server = on_loopback
