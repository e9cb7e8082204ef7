"""Workers on Ray, chosen by `offline_store.ray_address`. The one module of asof that imports Ray.

| address | what is used |
|---|---|
| `local` | a Ray of this process alone, on loopback, ended with the process |
| `auto` | the cluster this machine belongs to |
| `host:6379`, `ray://host:10001` | that cluster: its head, or its client port |

A process that is connected to Ray already keeps that connection, whatever the address says; it is not ended here.
Workers need asof and the other pinned packages, and must see the sources under the same paths. Repository code that a
transformation uses travels with it. Ray is imported when the address is known: it reads its environment then.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from asof.definition import View
from asof.errors import AsofError
from asof.shards import Part

TRIES = 3
"""How often Ray starts a shard again whose worker died."""

_LOOPBACK = "127.0.0.1"
_SECONDS = 5.0
_REASON = 400
"""Characters of what Ray gives as its reason."""
_ALONE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # in Ray's words: a node by itself, all of it on loopback
}
_TOKEN = {
    "RAY_AUTH_MODE": "token",  # other users of this machine reach loopback too
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


class ClusterUnreachable(AsofError, ConnectionError):
    """There is no Ray at the address."""


class ClusterTooSmall(AsofError, ValueError):
    """No machine of the cluster has the CPUs one shard asks for."""


class ShardLost(AsofError, RuntimeError):
    """A shard's worker died, again and again."""


class ShardFailed(AsofError, RuntimeError):
    """A shard raised what no asof error describes."""


class Cluster:
    """Runs functions as Ray tasks.

    Args:
        address: see the module.
        threads: CPUs a task takes, which are the threads its DuckDB uses.

    Raises:
        ClusterUnreachable: nothing answers there.
        ClusterTooSmall: no machine has that many CPUs.
    """

    def __init__(self, address: str, threads: int = 1) -> None:
        ray = connect(address)
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if largest < threads:
            raise ClusterTooSmall(
                f"A shard asks for {threads} CPUs; the largest machine of the cluster has {largest:g}.",
                hint="Lower offline_store.threads.",
            )
        self._address = address
        self._threads = threads

    def start(self, function: Callable[..., Any], *arguments: Any, pieces: int = 1) -> list[Any]:
        """See `asof.shards.Workers`.

        Raises:
            ClusterUnreachable: the server of Ray's client went away.
        """
        import ray

        with _code_goes_along(arguments):
            packed = [each if isinstance(each, ray.ObjectRef) else _Packed(each) for each in arguments]
        task = ray.remote(num_cpus=self._threads, max_retries=TRIES, num_returns=pieces)(_run)
        with self._in_reach():
            handles = task.remote(function, *packed)
        return [handles] if pieces == 1 else list(handles)

    def finished(self, handles: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `asof.shards.Workers`.

        Raises:
            ClusterUnreachable: the server of Ray's client went away.
            ShardLost: a worker died more often than Ray tries, for example for want of memory.
            ShardFailed: a worker raised what it should not have.
        """
        import ray

        waiting = list(handles)
        try:
            with self._in_reach():
                places = {handle: place for place, handle in enumerate(handles)}
                while waiting:
                    (done,), waiting = ray.wait(waiting)
                    yield places[done], _got(done)
        finally:
            if ray.is_initialized():
                for handle in waiting:
                    with contextlib.suppress(ConnectionError):
                        ray.cancel(handle)

    @contextlib.contextmanager
    def _in_reach(self) -> Iterator[None]:
        import ray

        try:
            yield
        except Exception as error:
            if not isinstance(error, ConnectionError) and ray.is_initialized():
                raise
            raise ClusterUnreachable(
                f"The Ray cluster at offline_store.ray_address {self._address!r} went away while shards were computed.",
                hint="Ask again when it is back; nothing was written.",
            ) from error


class _Packed:
    """An argument as bytes that carry the code they need; large arrays stay outside, where workers share them."""

    def __init__(self, value: Any) -> None:
        from ray import cloudpickle

        self.buffers: list[Any] = []
        self.data = cloudpickle.dumps(value, protocol=5, buffer_callback=self._keep)

    def _keep(self, buffer: Any) -> None:
        self.buffers.append(buffer)

    def value(self) -> Any:
        from ray import cloudpickle

        return cloudpickle.loads(self.data, buffers=self.buffers)


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*(each.value() if isinstance(each, _Packed) else each for each in arguments))


def _got(handle: Any) -> Any:
    import ray

    try:
        return ray.get(handle)
    except ray.exceptions.RayError as error:
        # A shard whose input was to come from a dead worker says so inside an error of its own.
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if not isinstance(cause, ray.exceptions.RayError):
            raise ShardFailed(f"A shard raised {type(cause).__name__}: {cause}") from error
        raise ShardLost(
            f"A shard's worker died {TRIES + 1} times: {str(cause).strip().splitlines()[0]}",
            hint="If memory is short, raise offline_store.shards or lower offline_store.memory_limit; else see "
            "Ray's logs.",
        ) from error


def connect(address: str) -> Any:
    """Reach Ray, once per process; returns the module `ray`.

    Raises:
        ClusterUnreachable: nothing answers at the address.
    """
    loaded = sys.modules.get("ray")
    if loaded is not None and _is_connected(loaded):
        return loaded
    if address == "local":
        # Whether there are tokens Ray asks when it is imported, for good.
        with _environment(_ALONE if loaded is not None else _ALONE | _TOKEN):
            import ray

            # Imported before, it has read that part of its environment already.
            ray._private.ray_constants.ENABLE_RAY_CLUSTER = False

            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address=_LOOPBACK,
            )
    else:
        _somebody_listens(address)
        import ray
        from ray._private import auto_init_hook

        auto_init_hook.enable_auto_connect = False  # a call after the connection is lost would start a Ray of its own
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            # Of a server's traceback, the end says why.
            raise _unreachable(address, " ".join(str(error).split())[-_REASON:]) from error
    atexit.register(disconnect)
    return ray


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Ray takes these from the environment only, some when it is imported and some when it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def disconnect() -> None:
    """End the Ray that `connect` started, or leave the cluster it joined. Harmless when there is none."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
    atexit.unregister(disconnect)


def _is_connected(ray: Any) -> bool:
    """Whether Ray answers this process; a client whose server was away does not find it again, and is ended here."""
    if not ray.is_initialized():
        return False
    try:
        ray.nodes()
    except Exception:  # one of gRPC's, or a ValueError of a closed channel
        with contextlib.suppress(Exception):
            ray.shutdown()
        return False
    return True


def _somebody_listens(address: str) -> None:
    """Ask the port before Ray does, which takes a minute to give up."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise ClusterUnreachable(
            f"offline_store.ray_address is {address!r}.",
            hint="One of local, auto, host:port of a Ray head, ray://host:port of its client server.",
        )
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except OSError as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> ClusterUnreachable:
    return ClusterUnreachable(
        f"No Ray cluster answers at offline_store.ray_address {address!r}: {reason}",
        hint="Start one with `ray start --head`, correct the address, or remove it to compute in this process. "
        "A cluster with tokens answers only who was started with RAY_AUTH_MODE=token and its token in RAY_AUTH_TOKEN.",
    )


@contextlib.contextmanager
def _code_goes_along(arguments: Sequence[Any]) -> Iterator[None]:
    """While open, pickling copies the code of transformations' own modules instead of naming them.

    A repository's modules are on this machine's path, or were imported from a file and are on nobody's.
    """
    views = [view for each in arguments for view in _views_of(each)]
    functions = [view.source.transform.function for view in views if view.source.transform is not None]
    from ray import cloudpickle

    modules = {module.__name__: module for function in functions for module in _beside(function)}
    for module in modules.values():
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules.values():
            cloudpickle.unregister_pickle_by_value(module)


def _views_of(argument: Any) -> tuple[View, ...]:
    if isinstance(argument, View):
        return (argument,)
    return argument.views if isinstance(argument, Part) else ()


def _beside(function: Callable[..., Any]) -> Iterator[ModuleType]:
    """The module of a function and those whose files lie below its folder; nothing that is installed."""
    home = _file_of(sys.modules.get(function.__module__))
    if home is None or home.is_relative_to(sys.prefix) or home.is_relative_to(sys.base_prefix):
        return
    for module in list(sys.modules.values()):
        file = _file_of(module)
        if file is not None and file.is_relative_to(home.parent) and module.__name__ in sys.modules:
            yield module


def _file_of(module: ModuleType | None) -> Path | None:
    name = getattr(module, "__file__", None)
    return Path(name) if isinstance(name, str) else None
