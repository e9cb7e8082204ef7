"""Redis as people run it: one server, a cluster of several, a master and its replica watched by Sentinels.

All of them are Debian's `redis-server` on free loopback ports, in memory only.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

HOST = "127.0.0.1"
SECONDS = 20.0
"""For a server to come up, or several to agree."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something that servers do by themselves."""
    deadline = time.monotonic() + SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {SECONDS:g} s")
        time.sleep(0.02)


class RedisServer:
    """One server.

    Args:
        binary: `redis-server`.
        folder: for its files; has to exist.
        options: further options of its command line.
        config: of a Sentinel, which is what it then is.
        password: that it asks for.
    """

    def __init__(self, binary: str, folder: Path, *options: str, config: str | None = None, password: str = "") -> None:
        self.host = HOST
        self.port = free_port()
        self._command = [binary, "--bind", HOST, "--port", str(self.port), "--dir", str(folder), *options]
        if password:
            self._command += ["--requirepass", password]
        if config is None:
            self._command += ["--save", ""]
        else:
            file = folder / f"sentinel-{self.port}.conf"  # it writes into it what it learns
            file.write_text(config)
            self._command[1:1] = [str(file), "--sentinel"]
        self._password = password
        self._log = folder / f"redis-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def connection_string(self) -> str:
        """As `feature_store.yaml` wants it, without the password."""
        return f"{self.host}:{self.port}"

    @property
    def online_store(self) -> dict[str, str]:
        """The `online_store` section of a `feature_store.yaml`, without the password."""
        return {"type": "redis", "connection_string": self.connection_string}

    def start(self) -> None:
        """Start it, empty."""
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            until(lambda: self._answers() or process.poll() is not None, "redis-server answers")
        finally:
            if process.poll() is not None or not self._answers():
                self.stop()
                raise RuntimeError(f"redis-server did not come up: {self._log.read_text()}")

    def _answers(self) -> bool:
        try:
            return self.say("PING").startswith("+PONG")
        except OSError:
            return False

    def stop(self) -> None:
        """End it as a crash would; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def say(self, command: str) -> str:
        """Send an inline command; the beginning of what is answered."""
        with socket.create_connection((self.host, self.port), timeout=5) as connection:
            if self._password:
                connection.sendall(f"AUTH {self._password}\r\n".encode())
                assert connection.recv(16).startswith(b"+OK")
            connection.sendall(command.encode() + b"\r\n")
            return connection.recv(1 << 16).decode()

    def flush(self) -> None:
        """Forget every key."""
        assert self.say("FLUSHALL").startswith("+OK")


class RedisCluster:
    """Three masters that share the 16,384 slots and a password."""

    password = "271828"  # Feast reads it as a number

    def __init__(self, binary: str, folder: Path) -> None:
        self.servers = []
        self._buses = [free_port() for _ in range(3)]
        for bus in self._buses:
            home = folder / str(bus)  # each keeps what it knows of the others in a file of the same name
            home.mkdir()
            options = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000")
            self.servers.append(RedisServer(binary, home, *options, password=self.password))

    @property
    def online_store(self) -> dict[str, str]:
        """The `online_store` section of a `feature_store.yaml`; two of the nodes are enough to find all."""
        nodes = ",".join(server.connection_string for server in self.servers[:2])
        string = f"{nodes},password={self.password}"
        return {"type": "redis", "redis_type": "redis_cluster", "connection_string": string}

    def start(self) -> None:
        """Start all of them, empty, and let them agree on who has which slots."""
        first, *others = self.servers
        for server in self.servers:
            server.start()
        for place, server in enumerate(self.servers):
            low, high = 16384 * place // 3, 16384 * (place + 1) // 3 - 1
            assert server.say(f"CLUSTER ADDSLOTSRANGE {low} {high}").startswith("+OK")
            assert server.say(f"CLUSTER SET-CONFIG-EPOCH {place + 1}").startswith("+OK")
        for server in others:
            assert server.say(f"CLUSTER MEET {HOST} {first.port} {self._buses[0]}").startswith("+OK")
        self.agree()

    def agree(self) -> None:
        """Wait until all of them know each other and every slot has an owner."""
        until(lambda: all(self._agrees(server) for server in self.servers), "the cluster agrees")

    def _agrees(self, server: RedisServer) -> bool:
        info = server.say("CLUSTER INFO")
        return "cluster_state:ok" in info and "cluster_known_nodes:3" in info

    def flush(self) -> None:
        """Forget every key."""
        for server in self.servers:
            server.flush()

    def stop(self) -> None:
        """End all of them."""
        for server in self.servers:
            server.stop()


class SentinelSetup:
    """A master and its replica, and a Sentinel that puts the replica in its place half a second after it is gone."""

    def __init__(self, binary: str, folder: Path) -> None:
        # A master waits five seconds for more replicas before it sends the first one what it has.
        options = ("--masterauth", "secret", "--repl-diskless-sync-delay", "0")
        self.master = RedisServer(binary, folder, *options, password="secret")
        follows = ("--replicaof", HOST, str(self.master.port))
        self.replica = RedisServer(binary, folder, *options, *follows, password="secret")
        watch = (
            f"sentinel monitor features {HOST} {self.master.port} 1\nsentinel auth-pass features secret\n"
            "sentinel down-after-milliseconds features 500\n"
        )
        self.sentinel = RedisServer(binary, folder, config=watch, password="watchword")
        self.gone = f"{HOST}:{free_port()}"
        """A second Sentinel, which is not there."""

    @property
    def online_store(self) -> dict[str, str]:
        """The `online_store` section of a `feature_store.yaml`."""
        return {
            "type": "redis",
            "redis_type": "redis_sentinel",
            "sentinel_master": "features",
            "connection_string": f"{self.sentinel.connection_string},{self.gone},password=secret,"
            'sentinel_kwargs={"password": "watchword"}',
        }

    def start(self) -> None:
        """Start all of them; the Sentinel knows the replica when this returns."""
        self.master.start()
        self.replica.start()
        until(lambda: "master_link_status:up" in self.replica.say("INFO replication"), "the replica follows")
        self.sentinel.start()
        until(lambda: "num-slaves\r\n$1\r\n1" in self.sentinel.say("SENTINEL MASTER features"), "the replica is seen")

    def fail_over(self) -> None:
        """Kill the master when the replica has what it has; the Sentinel names that one when this returns."""
        there = _offset(self.master)
        until(lambda: _offset(self.replica) >= there, "the replica has everything")
        self.master.stop()
        # While it moves over it already gives the new address, but still calls the master down.
        done = [f"\r\nport\r\n$5\r\n{self.replica.port}\r\n", "\r\nflags\r\n$6\r\nmaster\r\n"]
        until(
            lambda: all(each in self.sentinel.say("SENTINEL MASTER features") for each in done), "the replica is master"
        )
        self.master, self.replica = self.replica, self.master

    def stop(self) -> None:
        """End all of them."""
        for server in (self.sentinel, self.replica, self.master):
            server.stop()


def _offset(server: RedisServer) -> int:
    """How far a server is in the stream of changes."""
    told = next(line for line in server.say("INFO replication").split() if line.startswith("master_repl_offset"))
    return int(told.partition(":")[2])
