"""The servers that bench_serving.py compares: each is a process of its own, which says "ready" and ends with its input.

python benchmarks/serving_sides.py make | ray | uvicorn | stock | package …
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AT = datetime(2013, 4, 1, tzinfo=UTC)
BEGINNING = datetime(2012, 1, 1, tzinfo=UTC)
TASK = "late_arrival"
ASYNCHRONOUS = f"{TASK}_async"
"""The same task with the asynchronous log, answered by the same replica."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_project(root: Path) -> None:
    """Land the flights, train one version, let it be the champion, fill the online store, write the requests."""
    from sqlalchemy import delete, insert, select, update

    from contracts.spine import read_spine
    from contracts.state import deployments
    from loop.features import Materializer, apply, open_features
    from loop.project import Project
    from loop.retrain import retrain
    from loop.traffic import request_rows

    project = Project(root)
    if not (root / "tasks").exists():
        for part in ("feature_repo", "tasks"):
            shutil.copytree(ROOT / part, root / part)
        task = project.task(TASK)
        project.ingest(task, print)
        apply(task)
        result, _ = retrain(project, task, project.open_state(), now=AT, say=print)
        row = {"champion": result.version, "champion_bundle": str(result.bundle)}
        Materializer(open_features(task), BEGINNING).to(AT)
    else:
        row = {}
    again = (ROOT / "tasks" / f"{TASK}.toml").read_text().replace(f'"{TASK}"', f'"{ASYNCHRONOUS}"')
    again = again.replace("default = true\n", "").replace("[serving]\n", '[serving]\nlog = "async"\n')
    (root / "tasks" / f"{ASYNCHRONOUS}.toml").write_text(again)
    task = project.task(TASK)
    with project.open_state().begin() as connection:
        idle = {"challenger": None, "challenger_bundle": None, "stage": "idle", "share": 0.0}
        connection.execute(update(deployments).where(deployments.c.task == TASK).values(**row, **idle))
        kept = connection.execute(select(deployments).where(deployments.c.task == TASK)).mappings().one()
        connection.execute(delete(deployments).where(deployments.c.task == ASYNCHRONOUS))
        connection.execute(insert(deployments).values(**{**kept, "task": ASYNCHRONOUS}))
    spine = read_spine(task, start=AT, end=AT + timedelta(days=4), known_at=AT)
    asked = [row | {task.spine.event_timestamp: AT.isoformat()} for row in request_rows(task, spine)]
    # Feast's own read, on the stock side, fails on a null key.
    rows = [row for row in asked if all(row[key] is not None for key in task.spine.keys)][:2000]
    batches = [rows[i : i + 100] for i in range(0, len(rows) - 99, 100)]
    for name, groups in (("one", [[row] for row in rows]), ("hundred", batches)):
        (root / f"{name}.bodies").write_bytes(b"\n".join(json.dumps({"rows": group}).encode() for group in groups))


def serve_ray(root: Path, port: int, grpc_port: int) -> None:
    from serving.start import environment

    os.environ |= environment(port) | {"RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 2)}
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from serving import app

    args = {
        "project": str(root),
        "tasks": f"{TASK},{ASYNCHRONOUS}",
        "clock": "request",
        "grpc": f"127.0.0.1:{grpc_port}",
    }
    app.launch(args, spare_port=free_port())

    class Nothing:
        async def __call__(self, request) -> dict:
            await request.body()
            return {}

    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    empty = serve.deployment(Nothing).options(
        max_ongoing_requests=600, ray_actor_options={"num_cpus": 0.1}, logging_config=quiet
    )
    serve.run(empty.bind(), name="no-op", route_prefix="/no-op")
    until_told()
    app.shut_down()


def serve_uvicorn(root: Path, port: int) -> None:
    import uvicorn

    from contracts.clock import SystemClock
    from serving.replica import Replica

    replica = Replica(root, root / "data", [TASK], SystemClock(), "request")
    server = uvicorn.Server(uvicorn.Config(replica.asgi, port=port, log_level="error", lifespan="off", loop="uvloop"))
    threading.Thread(target=lambda: (until_told(), setattr(server, "should_exit", True)), daemon=True).start()
    server.run()
    replica.close()


def serve_stock(root: Path, port: int, model_port: int) -> None:
    """What a user would write: one endpoint that asks Feast, then the model's server."""
    import math

    import httpx
    import uvicorn
    from fastapi import Body, FastAPI

    from contracts.bundle import load_bundle
    from loop.features import open_features
    from loop.project import Project

    project = Project(root)
    task = project.task(TASK)
    store = open_features(task)
    service = store.get_feature_service(task.feature_service)
    names = [spec.name for spec in load_bundle(bundle_path(root)).metadata.features]
    keys, fields = task.spine.keys, task.spine.request_fields
    model = httpx.Client(base_url=f"http://127.0.0.1:{model_port}", timeout=60)
    app = FastAPI()

    def value(row: dict, name: str):
        return datetime.fromisoformat(row[name]) if name in fields else row[name]

    @app.post("/predict")
    def predict(content: dict = Body()) -> dict:  # noqa: B008  FastAPI's way
        return answer(content["rows"])

    def answer(rows: list[dict]) -> dict:
        entities = [{name: value(row, name) for name in (*keys, *fields)} for row in rows]
        found = store.get_online_features(features=service, entity_rows=entities).to_dict()
        columns = [found[name] for name in names]
        vectors = [[math.nan if each is None else float(each) for each in row] for row in zip(*columns, strict=True)]
        sent = json.dumps({"inputs": vectors})
        told = model.post("/invocations", content=sent, headers={"content-type": "application/json"})
        return {"predictions": told.raise_for_status().json()["predictions"]}

    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", loop="uvloop"))
    threading.Thread(target=lambda: (until_told(), setattr(server, "should_exit", True)), daemon=True).start()
    server.run()


def package_for_mlflow(root: Path, folder: Path) -> None:
    """The bundle's own graph as an MLflow model."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import infer_signature

    bundle = load_bundle_of(root)
    width = len(bundle.metadata.features)
    vectors = np.zeros((2, width), np.float32)
    graph = onnx.load(bundle.model_path)
    mlflow.onnx.save_model(graph, str(folder), signature=infer_signature(vectors, {"score": np.zeros(2, np.float32)}))


def bundle_path(root: Path) -> Path:
    from sqlalchemy import select

    from contracts.state import deployments
    from loop.project import Project

    with Project(root).open_state().connect() as connection:
        found = select(deployments.c.champion_bundle).where(deployments.c.task == TASK)
        return Path(connection.execute(found).scalar_one())


def load_bundle_of(root: Path):
    from contracts.bundle import load_bundle

    return load_bundle(bundle_path(root))


def until_told() -> None:
    print("ready", flush=True)
    while os.read(sys.stdin.fileno(), 4096):
        pass


SIDES = {
    "make": make_project,
    "package": package_for_mlflow,
    "ray": serve_ray,
    "uvicorn": serve_uvicorn,
    "stock": serve_stock,
}

if __name__ == "__main__":
    name, where, *more = sys.argv[1:]
    SIDES[name](Path(where), *(int(each) if each.isdigit() else Path(each) for each in more))
