"""A writer that is killed, or runs out of disk, leaves what was there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asof.files import parquet_files

OLD = pa.table({"driver_id": pa.array([1], pa.int64()), "v": [1.0], "ts": pa.array([0], pa.timestamp("us", "UTC"))})
WRITERS = {
    "offline_write_batch to a file": "data.parquet",
    "offline_write_batch to a folder": "data/old.parquet",
    "persist": "data.parquet",
    "write_logged_features": "data/old.parquet",
}
FAULTS = ["disk full", "killed"]

# Every fault is met by a child of its own; they share one import of Feast, which takes seconds.
PROGRAM = """
import json, os, resource, signal, sys, time
from pathlib import Path
import numpy as np, pyarrow as pa
from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.types import Float64
from asof.offline_store import AsofOfflineStore
from asof.retrieval import AsofRetrievalJob

config = RepoConfig(project="p", provider="local", registry="r.db", offline_store="asof.offline_store.AsofOfflineStore",
                    online_store="sqlite", entity_key_serialization_version=3)
count = 1_000_000
rows = pa.table({"driver_id": np.arange(count), "v": np.random.default_rng(1).normal(size=count),
                 "ts": pa.array(np.arange(count), pa.timestamp("us", "UTC"))})
driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)

def write(writer, target):
    if writer == "persist":
        AsofRetrievalJob(lambda: rows, config).persist(SavedDatasetFileStorage(target), allow_overwrite=True)
    elif writer == "write_logged_features":
        logs = LoggingConfig(destination=FileLoggingDestination(path=target), sample_rate=1.0)
        AsofOfflineStore.write_logged_features(config, rows, None, logs, None)
    else:
        view = FeatureView(name="v", entities=[driver], schema=[Field(name="v", dtype=Float64)],
                           source=FileSource(path=target, timestamp_field="ts"))
        AsofOfflineStore.offline_write_batch(config, view, rows, None)

def child(writer, target, fault):
    if fault == "disk full":  # what a full disk is to a writer: write() fails
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        write(writer, target)
    except OSError as error:
        os._exit(27 if "File too large" in str(error) else 1)
    os._exit(0)

found = {}
for writer, fault, target in json.load(sys.stdin):
    pid, half = os.fork(), False
    if pid == 0:
        child(writer, target, fault)
    while fault == "killed":
        half = any(f.stat().st_size for f in Path(target).parent.parent.rglob(".*.parquet.*"))
        if half or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            os.kill(pid, signal.SIGKILL)
            break
    found[f"{writer}, {fault}"] = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), half]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def after(tmp_path_factory) -> dict[str, tuple[Path, int, bool]]:
    """By writer and fault: where it wrote, how it ended, whether it was seen in the middle of writing."""
    asked, targets = [], {}
    for writer, file in WRITERS.items():
        for fault in FAULTS:
            folder = tmp_path_factory.mktemp("fault")
            path = folder / "here" / file
            path.parent.mkdir(parents=True)
            pq.write_table(OLD, path)
            target = path.parent if "/" in file else path
            targets[f"{writer}, {fault}"] = target
            asked.append([writer, fault, str(target)])
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    return {name: (targets[name], *ended) for name, ended in json.loads(done.stdout.splitlines()[-1]).items()}


def readable(target: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in parquet_files(target))


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_what_was_there(after, writer):
    target, status, _ = after[f"{writer}, disk full"]
    assert status == 27
    assert readable(target).equals(OLD)
    assert not list(target.parent.rglob(".*.parquet.*"))  # the half file does not stay on the full disk


@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_killed_in_the_middle_leaves_what_was_there(after, writer):
    target, status, half = after[f"{writer}, killed"]
    assert half, "never seen in the middle of writing"
    assert status == -9
    assert readable(target).equals(OLD)
