"""How tests share a machine, and real servers for those that need one.

Redis is Debian's `redis-server`, PostgreSQL comes with the `pgserver` wheel.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from xdist.scheduler import LoadFileScheduling

from contracts.state import open_state
from tests.redis_servers import RedisCluster, RedisServer, SentinelSetup


class _OneRayAtATime(LoadFileScheduling):
    """With `-n`, a file's tests stay together, and so do all files that start Ray: one worker runs them in turn."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "ray" if _starts_ray(self.config.rootpath / file) else file


@functools.cache
def _starts_ray(file: Path) -> bool:
    return "pytest.mark.ray" in file.read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """What `pytest -n` spreads the tests by."""
    return _OneRayAtATime(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest piece of work first."""
    items.sort(key=lambda item: not _starts_ray(item.path))


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """The path of a program that .ci/run installs: there, a missing one is a fault and not a circumstance."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            reason = f"{name} is not on PATH: apt-get install {name}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return find


@pytest.fixture(scope="session")
def chromium(program: Callable[[str], str]) -> str:
    """A browser; `tests.browser` looks at pages with it."""
    return program("chromium")


@pytest.fixture(scope="session")
def redis_server(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for the session; a test that stops it starts it again."""
    server = RedisServer(program("redis-server"), tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_cluster(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """One Redis Cluster for the session; it takes two seconds to agree."""
    cluster = RedisCluster(program("redis-server"), tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def redis_sentinel(program: Callable[[str], str], tmp_path: Path) -> Iterator[SentinelSetup]:
    """A master, a replica and a Sentinel of one's own: a test may kill the master."""
    setup = SentinelSetup(program("redis-server"), tmp_path)
    try:
        setup.start()
        yield setup
    finally:
        setup.stop()


class PostgresServer:
    """A PostgreSQL of its own, reached through a socket in its folder."""

    def __init__(self, folder: str) -> None:
        import pgserver

        self.folder = folder
        self._server: Any = pgserver.get_server(folder)

    def new_database(self) -> str:
        """The SQLAlchemy URL of an empty database of its own."""
        name = f"t{uuid.uuid4().hex}"
        self.execute(f"create database {name}")
        url: str = self._server.get_uri(database=name)
        return url.replace("postgresql://", "postgresql+psycopg://")

    @property
    def online_store(self) -> dict[str, Any]:
        """The `online_store` section of a `feature_store.yaml`."""
        return {
            "type": "postgres",
            "host": self.folder,
            "port": 5432,
            "database": "postgres",
            "db_schema": "public",
            "user": "postgres",
            "password": "",
        }

    def execute(self, sql: str) -> str:
        """Run SQL as psql does."""
        said: str = self._server.psql(sql)
        return said

    def close(self) -> None:
        self._server.cleanup()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the session; tests keep apart by Feast project or by database."""
    # A socket's path may not be longer than about 100 characters, and pytest's folders often are.
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        server = PostgresServer(folder)
        yield server
        server.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def state_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database for the shared state, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'deep' / 'state.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()


@pytest.fixture
def state_engine(state_url: str) -> Iterator[Engine]:
    """The shared state, opened."""
    engine = open_state(state_url)
    yield engine
    engine.dispose()
