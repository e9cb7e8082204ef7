"""Precomputed predictions of the flights example: the batch job, and the endpoint that reads what it wrote.

    python benchmarks/bench_batch.py            # cases of the 30 days after 1 April
    python benchmarks/bench_batch.py 7          # of 7 days
    python benchmarks/bench_batch.py scoring    # scoring alone, by rows: where Ray Data begins to pay

The job computes features, scores and writes: in its own process, and with Ray Data scoring (Ray running already, and
started for it). Beside it the online path, row by row, in process and without transport or log: the plan reads the
online store, the graph scores. Both are of one instant, and their answers are held equal bit for bit. Then the same
requests of one row to the endpoint, served from predictions and computed, log included.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
from sides import measured, ratio, run_side

ROOT = Path(__file__).resolve().parent.parent
AT = datetime(2013, 4, 1, tzinfo=UTC)
BEGINNING = datetime(2012, 1, 1, tzinfo=UTC)
ROWS_ONE_BY_ONE = 2_000
ROWS_SCORED = (50_000, 200_000, 500_000, 1_000_000, 2_000_000)
TASK = "arrival_delay"


def make_project(root: Path) -> None:
    """Land the flights, train one version, let it be the champion, fill the online store."""
    from sqlalchemy import update

    from contracts.state import deployments
    from loop.features import Materializer, apply, open_features
    from loop.project import Project
    from loop.retrain import retrain

    for part in ("feature_repo", "tasks"):
        shutil.copytree(ROOT / part, root / part)
    project = Project(root)
    task = project.task(TASK)
    project.ingest(task, print)
    apply(task)
    engine = project.open_state()
    result, _ = retrain(project, task, engine, now=AT, say=print)
    row = {"champion": result.version, "champion_bundle": str(result.bundle), "challenger": None, "stage": "idle"}
    with engine.begin() as connection:
        connection.execute(update(deployments).values(challenger_bundle=None, **row))
    Materializer(open_features(task), BEGINNING).to(AT)


def opened(root: Path, days: int):
    from loop.project import Project
    from serving.batch import Predictor

    project = Project(root)
    task = project.task(TASK)
    horizon = {"horizon": timedelta(days=days), "good_for": timedelta(days=days)}
    task = task.model_copy(update={"batch": task.batch.model_copy(update=horizon)})
    return task, Predictor(task, project.locations, project.open_state())


def job(root: Path, days: int, scoring: str) -> dict:
    from serving.batch_scoring import in_process, on_ray

    _, predictor = opened(root, days)
    score = in_process if scoring == "here" else on_ray
    spent = {"scoring": 0.0}

    def timed(*given):
        began = time.perf_counter()
        answers = score(*given)
        spent["scoring"] += time.perf_counter() - began
        return answers

    if scoring == "ray":
        predictor.run(AT, known_at=lambda: AT, scoring=timed)  # Ray is running now, and its workers' imports are cached
    report, taken = measured(
        lambda: predictor.run(AT, known_at=lambda: AT, scoring=timed), 1 if "cold" in scoring else 3
    )
    return {**taken, "cases": report.cases}


def scoring(root: Path, rows: int, how: str) -> dict:
    """The reference rows of a version, repeated: what it takes to score so many, and a hash of the answers."""
    from contracts.bundle import load_bundle
    from contracts.registry import open_registry
    from loop.project import Project
    from serving.batch_scoring import in_process, on_ray

    bundle = load_bundle(open_registry(Project(root).locations).versions(TASK)[0].bundle)
    reference, specs = bundle.reference(), bundle.metadata.features
    numbers = [reference[each.name].to_numpy() for each in specs if each.kind == "number"]
    texts = [reference[each.name].fill_null("").to_numpy(zero_copy_only=False) for each in specs if each.kind == "text"]
    places = np.arange(rows) % reference.num_rows
    matrix = np.column_stack(numbers).astype(np.float32)[places]
    words = np.column_stack(texts).astype(object)[places] if texts else np.empty((rows, 0), object)
    score = in_process if how == "here" else on_ray
    if how == "ray":
        score(bundle.model_path, matrix[:100], words[:100])  # Ray is running now, and its workers' imports are cached
    answers, taken = measured(lambda: score(bundle.model_path, matrix, words))
    return {**taken, "cases": rows, "answers": sha256(answers.tobytes()).hexdigest()}


def scoring_by_rows() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = run_side(__file__, "make", folder, "0")
        if "failed" in made:
            sys.exit(made["failed"])
        compare_scoring(folder)


def compare_scoring(folder: str) -> None:
    """Both ways of one version's project, on the same rows."""
    for rows in ROWS_SCORED:
        here, ray, cold = (run_side(__file__, "scoring", folder, str(rows), how) for how in ("here", "ray", "cold ray"))
        assert here["answers"] == ray["answers"] == cold["answers"], (here, ray, cold)
        print(
            f"{rows:>9,} rows  here {here['seconds']} s, Ray Data {ray['seconds']} s, Ray started {cold['seconds']} s"
        )
        print(ratio("           Ray started beside this process", cold, here), flush=True)


def one_by_one(root: Path, days: int) -> dict:
    from contracts.spine import read_spine
    from loop.traffic import request_rows
    from serving.batch import askable
    from serving.batch_view import VERSION

    task, predictor = opened(root, days)
    model = predictor._live().champion
    from serving.requests import RequestSchema

    spine = read_spine(task, start=AT, end=AT + task.batch.horizon, known_at=AT)
    cases, columns = askable(RequestSchema(task, model.plan.inputs, "system"), spine)
    random = np.random.default_rng(3)
    chosen = np.sort(random.choice(cases.num_rows, min(ROWS_ONE_BY_ONE, cases.num_rows), replace=False)).tolist()
    asked = [{name: [column[i]] for name, column in columns.items()} for i in chosen]

    def work():
        answers = []
        for each in asked:
            vectors = model.plan.vectors(each, [AT], model.bundle.metadata.features)
            answers.append(model.predict(vectors.numbers, vectors.texts)[0])
        return np.array(answers)

    answers, taken = measured(work, 3)
    ids = [cases[task.spine.id][i].as_py() for i in chosen]
    kept = predictor._view.plan().look_up({task.spine.id: ids, VERSION: [model.version] * len(ids)}, [AT] * len(ids))
    stored = np.column_stack([kept.values["score"], np.array(kept.values["quantiles"])]).astype(np.float32)
    assert np.array_equal(stored, answers), np.abs(stored - answers).max()
    assert len(request_rows(task, spine)) == spine.num_rows
    return {**taken, "cases": len(asked)}


def endpoint(root: Path, days: int, mode: str) -> dict:
    from contracts.clock import VirtualClock
    from contracts.spine import read_spine
    from loop.project import Project
    from loop.traffic import request_rows
    from serving.replica import Replica

    project = Project(root)
    file = root / "tasks" / f"{TASK}.toml"
    text = (ROOT / "tasks" / f"{TASK}.toml").read_text()
    file.write_text(text.replace("[serving]\n", f'[serving]\nmode = "{mode}"\n'))
    replica = Replica(root, project.locations.data, [TASK], VirtualClock(AT), "request")
    task = project.task(TASK)
    spine = read_spine(task, start=AT, end=AT + timedelta(days=days), known_at=AT).slice(0, ROWS_ONE_BY_ONE)
    at = AT.isoformat()
    bodies = [
        json.dumps({"rows": [row | {task.spine.event_timestamp: at}]}).encode() for row in request_rows(task, spine)
    ]
    service = replica.services[TASK]

    async def ask() -> list[float]:
        seconds = []
        for body in bodies:
            began = time.perf_counter()
            answer = await service.predict(body)
            seconds.append(time.perf_counter() - began)
            assert not answer.payload["degraded"], answer.payload
        return seconds

    asyncio.run(ask())
    rounds = np.array([asyncio.run(ask()) for _ in range(3)]) * 1000
    replica.close()
    p50, p99 = np.quantile(rounds, [0.5, 0.99], axis=1)
    return {"p50_ms": round(float(np.median(p50)), 3), "p99_ms": round(float(np.median(p99)), 3), "rows": len(bodies)}


def rate(side: dict) -> str:
    if "failed" in side:
        return side["failed"]
    return f"{side['cases']:,} cases in {side['seconds']} s: {side['cases'] / side['seconds']:,.0f} a second"


def main(days: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        where = (folder, str(days))
        made = run_side(__file__, "make", *where)
        if "failed" in made:
            sys.exit(made["failed"])
        here, ray, cold = (run_side(__file__, "job", *where, how) for how in ("here", "ray", "cold ray"))
        single = run_side(__file__, "one", *where)
        print(f"batch job, this process      {rate(here)}, {here.get('peak_mb')} MB")
        print(f"batch job, Ray Data          {rate(ray)}, {ray.get('peak_mb')} MB beside its workers")
        print(f"batch job, Ray started       {rate(cold)}")
        print(f"online path, row by row      {rate(single)}")
        if "failed" not in single and "failed" not in here:
            a_case = {"seconds": single["seconds"] / single["cases"]}
            print(ratio("row by row beside the job, a case", a_case, {"seconds": here["seconds"] / here["cases"]}))
        print(ratio("Ray Data beside this process", ray, here))
        for mode in ("batch", "online"):
            print(f"endpoint, {mode:6} one row     {run_side(__file__, 'endpoint', *where, mode)}")


SIDES = {"make": make_project, "job": job, "scoring": scoring, "one": one_by_one, "endpoint": endpoint}

if __name__ == "__main__":
    if len(sys.argv) > 2:
        side, where, count, *more = sys.argv[1:]
        if side == "make":
            make_project(Path(where))
            print("{}")
        else:
            print(json.dumps(SIDES[side](Path(where), int(count), *more)))
    elif sys.argv[1:] == ["scoring"]:
        scoring_by_rows()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
