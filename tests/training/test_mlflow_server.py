"""Runs and versions on an MLflow server: what is recorded is read back, and a server that is away is said at once."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contracts.clock import VirtualClock
from contracts.locations import Locations
from contracts.registry import AliasMoved, open_registry
from contracts.registry_mlflow import open_client
from training.tracking import EVALUATION, TrackingError, read_evaluation, tracked

CLOCK = VirtualClock(datetime(2024, 3, 1, tzinfo=UTC))

SERVER = """
import os, sys
root = sys.argv[1]
os.environ |= {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{root}/server.db",
    "_MLFLOW_SERVER_REGISTRY_STORE": f"sqlite:///{root}/server.db",
    "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
    "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{root}/kept",
    "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
}
from mlflow.server import app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""
"""MLflow's own application, without the processes that `mlflow server` puts around it."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    command = [sys.executable, "-c", SERVER, str(root)]
    with (
        (root / "server.log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as server,
    ):
        assert server.stdout is not None
        port = server.stdout.readline().decode().strip()
        assert port, (root / "log").read_text()
        yield f"http://127.0.0.1:{port}"
        server.kill()


@pytest.mark.slow
def test_a_run_and_its_version_are_recorded_there(
    address: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert urllib.request.urlopen(f"{address}/health").read() == b"OK"
    locations = Locations(tmp_path / "data", mlflow_server=address)
    bundle = locations.bundles("churn") / "b"
    bundle.mkdir(parents=True)
    (bundle / "model.onnx").write_bytes(b"model")
    with tracked("churn", locations, CLOCK, "first") as run:
        run.params({"learner": "lightgbm"})
        run.report({"metrics": {"roc_auc": 0.7}}, EVALUATION)
        run.folder(bundle, "bundle")
        registry = open_registry(locations)
        kept = registry.register(
            "churn", run_id=run.id, bundle=bundle, status="candidate", dataset_hash="d", model_hash="m"
        )
    assert capsys.readouterr().out == ""  # where a command's JSON goes
    assert registry.versions("churn") == [kept]
    assert (kept.version, kept.run_id, kept.bundle) == (1, run.id, bundle)
    registry.set_alias("churn", "champion", 1, expected=None)
    with pytest.raises(AliasMoved):
        registry.set_alias("churn", "champion", 1, expected=None)
    assert registry.resolve("churn@champion") == kept
    assert read_evaluation(run.id, locations) == {"metrics": {"roc_auc": 0.7}}
    assert open_client(locations).get_run(run.id).data.params == {"learner": "lightgbm"}
    assert [path.read_bytes() for path in (root / "kept").rglob("model.onnx")] == [b"model"]
    assert not (locations.data / "mlflow" / "mlflow.db").exists()


@pytest.mark.parametrize("server", ["http://127.0.0.1:1", "postgresql://us@127.0.0.1:1/mlflow"])
def test_a_server_that_is_away_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    began = time.monotonic()
    locations = Locations(tmp_path / "data", mlflow_server=server)
    away = pytest.raises(TrackingError, match=r"tracking store .* cannot be used: .* refused")
    with away as caught, tracked("churn", locations, CLOCK, "first"):
        pytest.fail("trained without a trace")
    assert time.monotonic() - began < 5
    assert "[mlflow] in skewless.toml" in caught.value.hint
    assert "s3cret" not in str(caught.value)
