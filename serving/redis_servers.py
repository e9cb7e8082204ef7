"""Who answers the commands of one read: a Redis server, the master that Sentinels name, or the nodes of a cluster.

Serving's door to redis-py. Commands are given as they go over the wire, and all of a read are sent before the first
answer is awaited. redis-py's own clients wait for ever and try again for seconds; a read has a time limit and one more
try.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import redis
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.exceptions import AskError, RedisClusterException
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from serving.online import StoreUnavailable

_REMEMBERED = 50_000
"""Slots kept, by command."""

Replies = list[list[bytes | None]]


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis is, as its client wants to know it."""

    nodes: tuple[tuple[str, int], ...]
    """Host and port: of the server, of Sentinels, or of some nodes of a cluster, which name the others."""
    settings: Mapping[str, Any]
    """Further arguments of the client: `db`, `password`, `ssl`, `socket_timeout` and so on."""
    kind: Literal["server", "sentinels", "cluster"] = "server"
    master: str = ""
    """Name under which Sentinels know the servers."""

    def __str__(self) -> str:
        nodes = ", ".join(f"{host}:{port}" for host, port in self.nodes)
        if self.kind == "sentinels":
            return f"the master {self.master!r} of the Sentinels {nodes}"
        return f"the cluster of {nodes}" if self.kind == "cluster" else nodes


class Servers(Protocol):
    """Whoever answers. May be used from any thread."""

    def ask(self, commands: Sequence[bytes]) -> Replies:
        """Replies to packed HMGETs, in their order.

        Raises:
            StoreUnavailable: there is no answer, or not in time.
        """
        ...


def servers_at(address: RedisAddress, timeout: float) -> Servers:
    """Nothing is connected yet.

    Args:
        address: of the store.
        timeout: seconds to connect, and to answer, unless the address names its own.
    """
    return Cluster(address, timeout) if address.kind == "cluster" else OneServer(address, timeout)


class OneServer:
    """A server, or the master that Sentinels name at that time: after a failover the next connection is to the new one.

    Args:
        address: of it.
        timeout: see `servers_at`.
    """

    def __init__(self, address: RedisAddress, timeout: float) -> None:
        self._address, self._timeout = address, timeout
        settings: dict[str, Any] = {**_limits(timeout), "retry": _once(), **address.settings}
        if address.kind == "sentinels":
            # Together they have the time of one server: some of them may be away.
            limits = {name: settings[name] / len(address.nodes) for name in _limits(timeout)}
            asked = {**limits, "retry": _once(), **settings.pop("sentinel_kwargs", {})}
            self._client = Sentinel(list(address.nodes), sentinel_kwargs=asked, **settings).master_for(address.master)
        else:
            host, port = address.nodes[0]
            self._client = redis.Redis(host=host, port=port, **settings)

    def ask(self, commands: Sequence[bytes]) -> Replies:
        """See `Servers`."""
        if not commands:
            return []
        pool = self._client.connection_pool
        for last in (False, True):
            connection = None
            try:
                connection = pool.get_connection()
                connection.send_packed_command([b"".join(commands)])
                return _replies(connection, len(commands))
            except BaseException as error:
                if connection is not None:
                    connection.disconnect()  # replies may be left in it
                # Perhaps it is this connection alone: the server may have been started again since it was made.
                if last or not isinstance(error, redis.ConnectionError):
                    if isinstance(error, redis.RedisError):
                        raise _unavailable(self._address, self._timeout, error) from error
                    raise
            finally:
                if connection is not None:
                    pool.release(connection)
        raise AssertionError("unreachable")


class Cluster:
    """The nodes of a cluster, each asked for what lies in its slots.

    Args:
        address: of some of them.
        timeout: see `servers_at`.
    """

    def __init__(self, address: RedisAddress, timeout: float) -> None:
        self._address, self._timeout = address, timeout
        self._lock = threading.Lock()
        self._found: RedisCluster | None = None
        self._slot = lru_cache(_REMEMBERED)(lambda command: key_slot(_words(command)[1]))

    def ask(self, commands: Sequence[bytes]) -> Replies:
        """See `Servers`."""
        if not commands:
            return []
        try:
            cluster = self._cluster()
            try:
                return self._asked(cluster, commands)
            except redis.TimeoutError:
                raise
            except AskError:
                return _followed(cluster, commands)
            except (redis.RedisError, RedisClusterException):
                cluster.nodes_manager.initialize()  # a node is gone, or was started again: who has its slots now?
                return self._asked(cluster, commands)
        except (redis.RedisError, RedisClusterException) as error:
            raise _unavailable(self._address, self._timeout, error) from error

    def _cluster(self) -> RedisCluster:
        with self._lock:  # finding the nodes is asking one of them
            if self._found is None:
                nodes = [ClusterNode(host, port) for host, port in self._address.nodes]
                settings = {**_limits(self._timeout), **self._address.settings}
                self._found = RedisCluster(startup_nodes=nodes, retry=Retry(NoBackoff(), 1), **settings)
            return self._found

    def _asked(self, cluster: RedisCluster, commands: Sequence[bytes]) -> Replies:
        places: dict[ClusterNode, list[int]] = {}
        for place, command in enumerate(commands):
            places.setdefault(cluster.nodes_manager.get_node_from_slot(self._slot(command)), []).append(place)
        replies: Replies = [[]] * len(commands)
        taken: list[tuple[Any, Any, list[int]]] = []
        try:
            for node, mine in places.items():
                pool = cluster.get_redis_connection(node).connection_pool
                connection = pool.get_connection()
                taken.append((pool, connection, mine))
                connection.send_packed_command([b"".join([commands[place] for place in mine])])
            for _, connection, mine in taken:
                for place, reply in zip(mine, _replies(connection, len(mine)), strict=True):
                    replies[place] = reply
        except BaseException:
            for _, connection, _ in taken:
                connection.disconnect()  # replies may be left in it
            raise
        finally:
            for pool, connection, _ in taken:
                pool.release(connection)
        return replies


def _followed(cluster: RedisCluster, commands: Sequence[bytes]) -> Replies:
    """Replies by redis-py's own pipeline, which follows keys that are moving to another node, and learns from it."""
    pipe = cluster.pipeline()
    for command in commands:
        name, *said = _words(command)
        pipe.execute_command(name.decode(), *said)
    replies: Replies = pipe.execute()
    return replies


def _limits(timeout: float) -> dict[str, float]:
    # Feast's own client waits for ever: a store that hangs would take every thread of the server with it.
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout}


def _once() -> Retry:
    return Retry(NoBackoff(), 0)


def _unavailable(address: RedisAddress, timeout: float, error: Exception) -> StoreUnavailable:
    if isinstance(error, MasterNotFoundError):  # its text describes Python's objects
        return StoreUnavailable(
            f"The Redis online store at {address} does not answer: no Sentinel in reach knows a master that is up.",
            hint="start them, or correct online_store.connection_string, which names the Sentinels, or "
            "online_store.sentinel_master in feature_store.yaml.",
        )
    return StoreUnavailable(
        f"The Redis online store at {address} does not answer: {error}",
        hint="start it, or correct online_store.connection_string in feature_store.yaml; "
        f"it has {timeout:g} s unless that names a socket_timeout.",
    )


def _replies(connection: Any, count: int) -> Replies:
    """The next replies of a connection; those that have come already are taken from the parser, without a call each."""
    replies: Replies = []
    parser = connection._parser
    waiting = parser._reader.gets if isinstance(parser, _HiredisParser) and connection.protocol in (2, "2") else None
    while len(replies) < count:
        replies.append(connection.read_response(disable_decoding=True))
        while waiting and len(replies) < count and (reply := waiting(False)) is not NOT_ENOUGH_DATA:
            if isinstance(reply, Exception):
                raise reply
            replies.append(reply)
    return replies


def _words(command: bytes) -> list[bytes]:
    """What a packed command says: its name, the key, the fields."""
    words, at = [], command.index(b"\r\n") + 2
    while at < len(command):
        first = command.index(b"\r\n", at) + 2
        last = first + int(command[at + 1 : first - 2])
        words.append(command[first:last])
        at = last + 2
    return words
