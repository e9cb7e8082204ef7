"""Ray Serve's own commands, as its documentation has them: `serve deploy` with serving/serve.yaml, and `serve run`.

On a cluster of one node, with Ray's own HAProxy in front of the replicas.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import yaml

from contracts.predictions import read_predictions
from loop.load_driver import drive
from tests.serving.conftest import NOW, request_row

pytestmark = [pytest.mark.slow, pytest.mark.ray]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SECONDS = 120
RATE = 40


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@dataclass
class Cluster:
    """A Ray cluster of one node, started as an operator would, and commands sent to it."""

    environment: dict[str, str]
    port: int
    ingress: int
    dashboard: str
    node: psutil.Process

    def replicas(self) -> list[psutil.Process]:
        """The processes that answer."""
        family = self.node.children(recursive=True)
        return [each for each in family if "ServeReplica" in " ".join(each.cmdline())]

    def command(self, *words: str) -> str:
        """What one command says; it must succeed."""
        found = subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout


def ended(process: subprocess.Popen[bytes], *, by: int) -> None:
    """End a process as its user would, and whatever of it is left then."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(by)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
    _, alive = psutil.wait_procs(family, timeout=5)
    for each in alive:
        each.kill()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Any) -> Any:
    couriers = make_project(tmp_path_factory.mktemp("serve") / "project")
    couriers.deploy(1, (1, couriers.bundle("one")))
    return couriers


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    gcs, dashboard, port, ingress, metrics, stats = free_ports(6)
    environment = os.environ | {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ingress),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ingress + 8),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PORT_QUARANTINE_S": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
    }
    options = ["--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=2", "--object-store-memory=80000000"]
    options += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # Ray's sockets bear no long path
        node = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder}", *options],
            env={name: value for name, value in environment.items() if name != "RAY_ADDRESS"},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            started = Cluster(environment, port, ingress, f"http://127.0.0.1:{dashboard}", psutil.Process(node.pid))
            eventually(lambda: socket.create_connection(("127.0.0.1", dashboard), timeout=1).close())
            yield started
        finally:
            ended(node, by=signal.SIGTERM)


def eventually(check: Any) -> Any:
    """What `check` returns once it stops raising."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return check()
        except (OSError, httpx.HTTPError, AssertionError, pytest.fail.Exception):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def assert_it_answers(url: str) -> None:
    def ready() -> None:
        found = httpx.get(f"{url}/readyz", timeout=5)
        assert found.status_code == 200, found.text  # HAProxy answers before it knows of any replica
        assert found.json()["status"] == "ready"

    eventually(ready)
    answer = httpx.post(f"{url}/v1/tasks/parcel_late/predict", json={"rows": [request_row(asked_at=NOW.isoformat())]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["version"] == 1


def test_serve_run_answers_until_it_is_interrupted(cluster: Cluster, project: Any) -> None:
    cluster.command("serve", "start", "--http-host", "127.0.0.1", "--http-port", str(cluster.port))
    arguments = [f"project={project.root}", f"data={project.data}", "clock=request"]
    running = subprocess.Popen(
        [BIN / "serve", "run", "serving.app:build", *arguments],
        env=cluster.environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert_it_answers(f"http://127.0.0.1:{cluster.ingress}")
    finally:
        ended(running, by=signal.SIGINT)
    assert running.returncode == 0

    def gone() -> None:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{cluster.ingress}/readyz", timeout=5)

    eventually(gone)


def test_serve_deploy_takes_the_shipped_file_and_haproxy_fails_over(
    cluster: Cluster, project: Any, tmp_path: Path
) -> None:
    config = yaml.safe_load((ROOT / "serving" / "serve.yaml").read_text())
    config["http_options"]["port"] = cluster.port
    [application] = config["applications"]
    application["args"] = {"project": str(project.root), "data": str(project.data), "clock": "request"}
    application["deployments"][0]["num_replicas"] = 2
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))

    cluster.command("serve", "deploy", str(file), "--address", cluster.dashboard)
    url = f"http://127.0.0.1:{cluster.port}"
    assert_it_answers(url)

    def both() -> None:
        assert len(cluster.replicas()) == 2

    eventually(both)
    names = [uuid.uuid4().hex for _ in range(RATE * 8)]
    row = request_row(asked_at=NOW.isoformat())
    bodies = [json.dumps({"rows": [row | {"parcel": name}], "request_id": name}).encode() for name in names]
    with ThreadPoolExecutor(1) as other:
        asking = other.submit(drive, f"{url}/v1/tasks/parcel_late/predict", bodies, np.arange(len(names)) / RATE)
        time.sleep(2)
        cluster.replicas()[0].kill()
        driven = asking.result()
    failed = int((driven.status != 200).sum())
    print(f"\nFAULT SIGKILL of one of two replicas behind HAProxy: {failed} of {len(names)} failed")
    assert failed < RATE, "the other replica answers"
    assert set(driven.status[-RATE:].tolist()) == {200}
    log = read_predictions(project.locations.predictions("parcel_late"), vectors=False)["request_id"].to_pylist()
    acknowledged = [name for name, status in zip(names, driven.status, strict=True) if status == 200]
    assert set(acknowledged) <= set(log)
