"""The real thing: `start` with Ray, the application behind a socket, a version swap and a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import yaml
from tritonclient.utils import triton_to_np_dtype

from contracts.errors import SkewlessError
from contracts.predictions import balance, read_predictions
from contracts.task import TaskError
from loop.load_driver import drive
from serving.host import FAILED
from serving.start import NotServing, PortBusy, ServingHandle, _failure, start

pytestmark = pytest.mark.ray
PREDICT = "/v1/tasks/parcel_late/predict"


def row(**changes: Any) -> dict[str, Any]:
    return {
        "depot_id": "north",
        "courier_id": 7,
        "ready_at": "2024-03-05T10:00:00Z",
        "weight": 2.5,
        "pieces": 3,
        "fragile": False,
        "label": "glass",
        "asked_at": "2024-03-05T10:30:00Z",
    } | changes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Any) -> Any:
    couriers = make_project(tmp_path_factory.mktemp("ray") / "project")
    couriers.deploy(1, (1, couriers.bundle("one")), (2, couriers.bundle("two", weight=-0.4)), "shadow")
    return couriers


@pytest.fixture(scope="module")
def log_disk(project: Any) -> Iterator[Path | None]:
    """The prediction log's folder as a file system of its own, of 16 MB; None where this user may not mount one."""
    folder: Path = project.locations.predictions("parcel_late")
    folder.mkdir(parents=True)
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True)
    mounted = bool(done) and done.returncode == 0
    yield folder if mounted else None
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def serving(project: Any, log_disk: Path | None) -> Iterator[ServingHandle]:
    where = {"port": free_port(), "grpc_port": free_port()}
    with start(project.root, project.data, **where, clock="request", tasks=["parcel_late"]) as handle:
        yield handle


def processes(handle: ServingHandle) -> list[psutil.Process]:
    host = psutil.Process(handle._process.pid)
    return [host, *host.children(recursive=True)]


def replica(handle: ServingHandle) -> psutil.Process:
    return next(each for each in processes(handle) if "ServeReplica" in " ".join(each.cmdline()))


RATE, SECONDS = 40, 5.0


@dataclass
class Met:
    """What callers met while something went wrong: requests that come on a schedule, whatever happens."""

    requests: int
    failed: int
    lost: int
    """Acknowledged, and not in the log."""
    recovered_s: float
    """From the fault to the last request that failed because of it."""

    def __str__(self) -> str:
        return f"{self.failed} of {self.requests} failed, {self.lost} lost, {self.recovered_s:.1f} s"


def meet(handle: ServingHandle, project: Any, fault: Callable[[], None], seconds: float = SECONDS) -> Met:
    """Ask `RATE` times a second for `seconds`, and let `fault` happen after the first."""
    ids = [f"{uuid.uuid4().hex}" for _ in range(int(RATE * seconds))]
    bodies = [
        json.dumps({"rows": [row(courier_id=i % 29 + 1)], "request_id": ids[i]}).encode() for i in range(len(ids))
    ]
    with ThreadPoolExecutor(1) as other:
        asking = other.submit(drive, handle.url + PREDICT, bodies, np.arange(len(ids)) / RATE)
        time.sleep(1)
        at = time.perf_counter()
        fault()
        driven = asking.result()
    bad = driven.status != 200
    ended = driven.began + driven.due_s + driven.latency_ms / 1000
    logged = set(
        read_predictions(project.locations.predictions("parcel_late"), vectors=False)["request_id"].to_pylist()
    )
    acknowledged = {ids[i] for i in np.flatnonzero(driven.status == 200)}
    assert set(driven.status[-RATE // 2 :].tolist()) == {200}, "it has not recovered"
    recovered = max(0.0, float(ended[bad].max()) - at) if bad.any() else 0.0
    return Met(len(ids), int(bad.sum()), len(acknowledged - logged), recovered)


def note(name: str, met: Any) -> None:
    """For docs/faults.md: `pytest -s` shows it."""
    print(f"\nFAULT {name}: {met}")


@pytest.mark.slow
class TestServing:
    """In this order: one Ray instance for all of them."""

    def test_it_answers_and_logs(self, serving: ServingHandle, project: Any) -> None:
        answer = httpx.post(serving.url + PREDICT, json={"rows": [row(parcel="p")], "request_id": "first"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"][0] | {"score": 0} == {
            "parcel": "p",
            "score": 0,
            "decision": 1,
            "variant": "champion",
            "version": 1,
        }
        assert serving.state()["tasks"]["parcel_late"]["generation"] == 1
        log = project.locations.predictions("parcel_late")
        assert read_predictions(log)["feature.temperature"].to_pylist() == [21.5]
        deadline = time.monotonic() + 20
        while not len(read_predictions(log, variants=("shadow",))) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert read_predictions(log, variants=("shadow",))["version"].to_pylist() == [2]

    def test_the_stock_grpc_client_is_answered_as_http_is(self, serving: ServingHandle, project: Any) -> None:
        with triton.InferenceServerClient(serving.grpc) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("parcel_late", "1")
            described = client.get_model_metadata("parcel_late", as_json=True)
            inputs = []
            for port in described["inputs"]:
                datatype = port["datatype"]
                value = (row() | {"parcel": "by grpc"})[port["name"]]
                inputs.append(triton.InferInput(port["name"], [1], datatype))
                inputs[-1].set_data_from_numpy(np.array([value], triton_to_np_dtype(datatype)))
            answer = client.infer("parcel_late", inputs, request_id="by-grpc")
        native = httpx.post(serving.url + PREDICT, json={"rows": [row()]}).json()["predictions"][0]
        assert answer.as_numpy("score").tolist() == [native["score"]]
        log = read_predictions(project.locations.predictions("parcel_late"))
        assert "by-grpc" in log["request_id"].to_pylist()

    def test_nothing_listens_beyond_this_machine(self, serving: ServingHandle) -> None:
        listening = [
            found.laddr
            for process in processes(serving)
            for found in process.net_connections(kind="inet")
            if found.status == psutil.CONN_LISTEN
        ]
        assert len(listening) > 3
        assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}

    def test_its_port_is_not_given_away(self, serving: ServingHandle, project: Any) -> None:
        port = int(serving.url.rsplit(":", 1)[1])
        with pytest.raises(PortBusy, match=f"Port {port} on 127.0.0.1 is busy") as busy:
            start(project.root, project.data, port=port, clock="request")
        assert "--port" in busy.value.hint
        with pytest.raises(PortBusy) as busy:
            start(
                project.root,
                project.data,
                port=free_port(),
                grpc_port=int(serving.grpc.rsplit(":", 1)[1]),
                clock="request",
            )
        assert "--grpc-port" in busy.value.hint

    def test_a_swap_under_load_fails_no_request(self, serving: ServingHandle, project: Any) -> None:
        two = project.locations.bundles("parcel_late") / "two"
        codes: list[int] = []
        versions: list[int] = []
        over = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=serving.url) as client:
                while not over.is_set():
                    answer = client.post(PREDICT, json={"rows": [row()]})
                    codes.append(answer.status_code)
                    versions.append(answer.json()["predictions"][0]["version"])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(versions) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        project.deploy(2, (2, two))
        while serving.state()["tasks"]["parcel_late"]["generation"] != 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        seen = len(versions)
        while len(versions) < seen + 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        over.set()
        for thread in threads:
            thread.join()
        assert set(codes) == {200}
        assert set(versions) == {1, 2}
        assert set(versions[seen + 10 :]) == {2}

    def test_a_killed_replica_loses_nothing_it_acknowledged_and_comes_back(
        self, serving: ServingHandle, project: Any
    ) -> None:
        acknowledged: list[str] = []
        over = threading.Event()

        def ask(name: str) -> None:
            number = 0
            with httpx.Client(base_url=serving.url, timeout=5) as client:
                while not over.is_set():
                    number += 1
                    wanted = f"{name}-{number}"
                    try:
                        answer = client.post(PREDICT, json={"rows": [row()], "request_id": wanted})
                    except httpx.TransportError:
                        time.sleep(0.05)
                        continue
                    if answer.status_code == 200:
                        acknowledged.append(wanted)

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b", "c")]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 120
        while len(acknowledged) < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        killed = replica(serving)
        began = time.perf_counter()
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait(20)
        before = len(acknowledged)
        while len(acknowledged) < before + 30 and time.monotonic() < deadline:
            time.sleep(0.05)
        over.set()
        for thread in threads:
            thread.join()
        assert len(acknowledged) >= before + 30
        note("SIGKILL of the only replica", f"answers again after {time.perf_counter() - began:.1f} s")
        assert replica(serving).pid != killed.pid
        # A caller whose answer was lost asks again under the same id: answered, and counted once.
        again = httpx.post(serving.url + PREDICT, json={"rows": [row()], "request_id": acknowledged[0]})
        assert again.json()["degraded"] == ["repeated"]
        log = project.locations.predictions("parcel_late")
        logged = read_predictions(log)["request_id"].to_pylist()
        assert set(acknowledged) <= set(logged)
        assert len(logged) == len(set(logged))
        assert balance(log).balanced

    def until_served(self, serving: ServingHandle, generation: int) -> None:
        deadline = time.monotonic() + 60
        while serving.state()["tasks"]["parcel_late"].get("generation", 0) < generation and time.monotonic() < deadline:
            time.sleep(0.02)

    def test_planned_changes_fail_no_request(self, serving: ServingHandle, project: Any) -> None:
        one, two = (project.locations.bundles("parcel_late") / name for name in ("one", "two"))

        def changes() -> None:
            for generation, deployed in (
                (3, ((2, two), (1, one), "shadow")),
                (4, ((2, two), (1, one), "canary", 0.5)),
                (5, ((1, one),)),  # promoted
                (6, ((2, two),)),  # rolled back
            ):
                project.deploy(generation, *deployed)
                self.until_served(serving, generation)

        met = meet(serving, project, changes)
        note("shadow, canary, promotion, rollback", met)
        assert (met.failed, met.lost) == (0, 0)

    def test_a_challenger_that_breaks_is_rolled_back_and_fails_no_request(
        self, serving: ServingHandle, project: Any
    ) -> None:
        from contracts.clock import SystemClock
        from contracts.state import open_state
        from serving.rollout import Move, Rollouts
        from serving.rollout_guard import Guard

        two, broken = project.locations.bundles("parcel_late") / "two", project.bundle("broken", weight=float("nan"))
        moves: list[tuple[float, Move]] = []
        began = 0.0

        def breach() -> None:
            nonlocal began
            began = time.perf_counter()
            project.deploy(7, (2, two), (3, broken), "canary", 0.5)

        rollouts = Rollouts(open_state(project.locations.state_url), project.task)
        with Guard([rollouts], SystemClock(), lambda move: moves.append((time.perf_counter(), move))):
            met = meet(serving, project, breach)
        [(at, move)] = moves
        self.until_served(serving, move.deployment.generation)
        note("a challenger that answers no number", f"{met}; rolled back after {at - began:.1f} s")
        assert (met.failed, met.lost) == (0, 0)
        assert (move.version, move.to_stage) == (3, "rolled_back")
        assert serving.state()["tasks"]["parcel_late"]["challenger"] is None

    def test_a_corrupt_bundle_leaves_the_sound_version_answering(self, serving: ServingHandle, project: Any) -> None:
        corrupt = project.bundle("corrupt")
        (corrupt / "model.onnx").write_bytes(b"altered")
        met = meet(serving, project, lambda: project.deploy(9, (4, corrupt)), 3)
        note("corrupt bundle", met)
        assert (met.failed, met.lost) == (0, 0)
        assert "model.onnx" in serving.state()["tasks"]["parcel_late"]["error"]
        project.deploy(10, (2, project.locations.bundles("parcel_late") / "two"))
        self.until_served(serving, 10)

    def test_bad_bodies_by_the_thousand_are_refused_and_keep_nobody_else_from_an_answer(
        self, serving: ServingHandle, project: Any
    ) -> None:
        bad = [b"{", b"[]", b'{"rows": []}', b'{"rows": [{"depot_id": 1e400}]}', b"\xff" * 100, b"x" * 70_000]
        statuses: list[int] = []

        def flood() -> None:
            found = drive(serving.url + PREDICT, [bad[i % len(bad)] for i in range(2000)], np.arange(2000) / 700)
            statuses.extend(found.status.tolist())

        met = meet(serving, project, flood)
        note("2,000 oversized and malformed bodies in 3 s", f"{met}; {Counter(statuses)}")
        assert (met.failed, met.lost) == (0, 0)
        assert set(statuses) <= {400, 413, 422}

    def test_a_full_disk_is_answered_with_503_and_nothing_acknowledged_is_lost(
        self, serving: ServingHandle, project: Any, log_disk: Path | None
    ) -> None:
        if log_disk is None:
            pytest.skip("this user may not mount a file system")
        disk, other = log_disk, project.bundle("other", features=("age", "rating"))

        def fill() -> None:
            with suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            project.deploy(11, (5, other))  # another schema wants a new segment: a write-ahead log has room of its own
            time.sleep(1.5)
            (disk / "filling").unlink()

        met = meet(serving, project, fill)
        note("full disk for 1.5 s", met)
        assert met.failed > 0
        assert met.lost == 0

    def test_an_unwritable_log_is_answered_with_503_and_nothing_acknowledged_is_lost(
        self, serving: ServingHandle, project: Any, log_disk: Path | None
    ) -> None:
        if log_disk is None:
            pytest.skip("this user may not mount a file system")

        disk, few = str(log_disk), project.bundle("few", features=("age", "temperature"))

        def lock() -> None:
            subprocess.run(["mount", "--bind", disk, disk], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=True)
            project.deploy(12, (6, few))  # another schema wants a new segment
            time.sleep(1.5)
            subprocess.run(["umount", "-l", disk], check=True)

        met = meet(serving, project, lock)
        note("log folder unwritable for 1.5 s, and a version with another schema", met)
        assert met.failed > 0
        assert met.lost == 0

    def test_an_answer_carries_the_request_id_once(self, serving: ServingHandle) -> None:
        answer = httpx.post(serving.url + PREDICT, json={"rows": [row()]}, headers={"x-request-id": "mine"})
        assert answer.headers.get_list("x-request-id") == ["mine"]
        assert len(httpx.get(f"{serving.url}/healthz").headers.get_list("x-request-id")) == 1

    def test_stopping_drains_compacts_and_leaves_no_process(self, serving: ServingHandle, project: Any) -> None:
        """Under load: callers go on until `/readyz` tells the balancer in front of them that this is the end."""
        statuses: list[int] = []
        failures: list[Exception] = []
        over = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=serving.url, timeout=20) as client:
                while not over.is_set():
                    try:
                        statuses.append(client.post(PREDICT, json={"rows": [row()]}).status_code)
                    except httpx.TransportError as error:
                        failures.append(error)
                        return

        def balance_load() -> None:
            with httpx.Client(base_url=serving.url, timeout=20) as client:
                while client.get("/readyz").status_code == 200:
                    time.sleep(0.02)
            over.set()

        threads = [threading.Thread(target=each) for each in (ask, ask, ask, balance_load)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while len(statuses) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        left = processes(serving)
        assert len(left) > 5
        metrics = httpx.get(f"{serving.url}/metrics").text
        assert 'skewless_answered_total{task="parcel_late"}' in metrics
        serving.stop()
        serving.stop()
        assert not serving.is_alive()
        for thread in threads:
            thread.join()
        assert (failures, set(statuses)) == ([], {200})
        _, alive = psutil.wait_procs(left, timeout=20)
        assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
        log = project.locations.predictions("parcel_late")
        assert {path.suffix for path in log.iterdir()} == {".parquet"}
        found = balance(log)
        assert found.balanced
        assert found.answered > 60


def test_a_wrong_task_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    with pytest.raises(TaskError, match="'gone' not found"):
        start(tmp_path, tmp_path / "data", port=free_port(), clock="system", tasks=["gone"])


def test_what_the_host_said_last_is_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "serving.log"
    log.write_text(f'noise\n{FAILED}{{"fact": "No such service.", "hint": "define it."}}\nmore noise\n')
    assert str(_failure(log)) == "No such service.\n\nHint: define it."
    log.write_text("one\ntwo\n")
    told = _failure(log)
    assert isinstance(told, NotServing)
    assert told.fact == "Serving ended before it was ready: one / two"
    assert str(log) in told.hint


class TestBuild:
    def test_arguments_are_checked_before_anything_runs(self) -> None:
        from serving.app import BadArguments, build

        with pytest.raises(BadArguments, match="Unknown argument 'projct'"):
            build({"projct": "."})
        with pytest.raises(BadArguments, match="clock is 'sundial'"):
            build({"clock": "sundial"})
        with pytest.raises(BadArguments, match="grpc is 'localhost'"):
            build({"grpc": "localhost"})

    def test_an_application_is_one_deployment(self, tmp_path: Path) -> None:
        from serving.app import build

        built: Any = build({"project": str(tmp_path), "tasks": "a,b", "clock": "request"})
        deployment = built._bound_deployment
        assert deployment.name == "predictions"
        assert deployment.init_args == (str(tmp_path), str(tmp_path / "data"), ["a", "b"], "request", "", "", False)

    def test_the_deployment_file_is_what_serve_reads(self) -> None:
        from ray.serve import Application
        from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
        from ray.serve.schema import ServeDeploySchema

        import serving.app

        file = Path(serving.app.__file__).with_name("serve.yaml")
        read = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
        [application] = read.applications
        assert application.import_path == "serving.app:build"
        builder = call_user_app_builder_with_args_if_necessary(serving.app.build, application.args)
        assert isinstance(builder, Application)

    def test_what_a_replica_said_is_told_without_its_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import serving.app

        message = (
            "Traceback (most recent call last):\n  File x\nfeast.errors.NotFound: no\n\nThe above exception was…\n"
            "serving.plan.PlanError: Feature service 'x' is not there.\n\nHint: services there: y."
        )
        error = serving.app._told(message)
        assert isinstance(error, SkewlessError)
        assert (error.fact, error.hint) == ("Feature service 'x' is not there.", "services there: y.")
