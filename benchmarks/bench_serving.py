"""A whole prediction over a socket, beside what it could cost at least and what a user would put together otherwise.

    python benchmarks/bench_serving.py                      # makes the flights project first, a few minutes
    python benchmarks/bench_serving.py FOLDER               # keeps it there, or finds it there
    python benchmarks/bench_serving.py FOLDER ray uvicorn   # some of the servers only

One run, all servers up, every measurement repeated in rounds whose order alternates; medians of the rounds. The client
is the same small one on the same cores. Requests are real flights; features come from SQLite, LightGBM runs in ONNX.

    skewless    the replica behind Ray Serve: features, score, durable log
    async log   the same in the same replica, answered before the log has it
    no-op       an empty Serve deployment in the same Ray, which only reads the body and answers {}
    uvicorn     the replica's application behind bare uvicorn: the same work, without Serve
    stock       FastAPI: get_online_features, then `mlflow models serve` over HTTP; the same graph, no log
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from serving_sides import ASYNCHRONOUS, ROOT, TASK, free_port

PREDICT, PREDICT_ASYNCHRONOUS = (f"/v1/tasks/{task}/predict" for task in (TASK, ASYNCHRONOUS))
ROUNDS = 5
SECONDS = 2.0
SERVERS = ("ray", "uvicorn", "stock")
SIDES = str(Path(__file__).with_name("serving_sides.py"))
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "PATH": f"{BIN}:{os.environ['PATH']}",  # MLflow starts uvicorn by its name
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def prepare(*words: str) -> None:
    """Run a side that ends by itself."""
    command = [sys.executable, "-W", "ignore", SIDES, *words]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words[0]}: {done.stderr[-2000:]}")


@contextmanager
def server(*words: str, port: int, path: str = "/readyz") -> Iterator[psutil.Process]:
    """A server of this file in a process of its own, until it answers; ended with the block."""
    log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)  # noqa: SIM115  outlives the block
    stranger = words[0] == "mlflow"
    own = [sys.executable, "-W", "ignore", SIDES, *words]
    command = [str(BIN / "mlflow"), *words[1:]] if stranger else own
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    family = psutil.Process(process.pid)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5):
                    break
            except OSError as error:
                if getattr(error, "code", 503) in (404, 405):
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{words[0]} does not answer: {Path(log.name).read_text()[-2000:]}")
            time.sleep(0.2)
        yield family
    finally:
        children = family.children(recursive=True) if family.is_running() else []
        process.stdin.close()
        if stranger:
            process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in psutil.wait_procs(children, timeout=10)[1]:
            child.kill()


def load(port: int, path: str, bodies: Path, **how) -> dict:
    asked = {"port": port, "path": path, "bodies": str(bodies), "seconds": SECONDS, **how}
    command = [sys.executable, str(ROOT / "benchmarks" / "http_load.py"), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (port, path, done.stderr)
    found = json.loads(done.stdout)
    assert not found["bad"], (path, found)
    return found


def rounds(sides: dict[str, tuple[int, str, Path]], number: int = ROUNDS, **how) -> dict[str, list[dict]]:
    """Measure every side in each round, forwards and backwards by turns."""
    found: dict[str, list[dict]] = {name: [] for name in sides}
    for turn in range(number):
        for name in sorted(sides, reverse=bool(turn % 2)):
            found[name].append(load(*sides[name], **how))
    return found


def median(runs: list[dict], what: str) -> float:
    return statistics.median(run[what] for run in runs)


def table(title: str, found: dict[str, list[dict]], rows_a_request: int = 1) -> None:
    print(f"\n{title}")
    for name, runs in found.items():
        speed = median(runs, "rps") * rows_a_request
        times = " ".join(f"{what} {median(runs, what):7.2f}" for what in ("p50", "p95", "p99"))
        spread = f"p50 of the rounds {min(r['p50'] for r in runs):.2f} to {max(r['p50'] for r in runs):.2f}"
        print(f"  {name:14} {speed:9,.0f} {'rows' if rows_a_request > 1 else 'req'}/s   {times} ms   ({spread})")


def ratio(found: dict[str, list[dict]], a: str, b: str, what: str) -> str:
    """Median of the rounds' own ratios: what varies over time falls out."""
    each = [x[what] / y[what] for x, y in zip(found[a], found[b], strict=True)]
    return f"  {a} / {b}: {what} {statistics.median(each):.2f} times ({min(each):.2f} to {max(each):.2f})"


def pss_mb(family: psutil.Process) -> tuple[float, float]:
    """Proportional memory of all processes of a server, and of its replica of the application."""
    total = replica = 0.0
    for each in [family, *family.children(recursive=True)]:
        try:
            used = each.memory_full_info().pss / 2**20
            total += used
            if "ServeReplica:skewless" in " ".join(each.cmdline()):
                replica = used
        except psutil.NoSuchProcess:
            continue
    return total, replica


def shadow(root: Path, port: int, on: bool) -> None:
    """Mirror every request to a second copy of the champion, or stop."""
    from sqlalchemy import select, update

    from contracts.state import deployments
    from loop.project import Project

    engine = Project(root).open_state()
    with engine.begin() as connection:
        row = connection.execute(select(deployments).where(deployments.c.task == TASK)).mappings().one()
        challenger = {
            "challenger": row["champion"] + 1 if on else None,
            "challenger_bundle": row["champion_bundle"] if on else None,
            "stage": "shadow" if on else "idle",
        }
        values = {"generation": row["generation"] + 1, **challenger}
        connection.execute(update(deployments).where(deployments.c.task == TASK).values(**values))
    engine.dispose()
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            if json.load(answer)["tasks"][TASK]["generation"] == row["generation"] + 1:
                return
        time.sleep(0.05)


def protocols(port: int, grpc_port: int, bodies: Path) -> dict[str, list[dict]]:
    """One question through stock clients, turn by turn: V2 over HTTP and over gRPC."""
    import numpy as np
    import tritonclient.grpc as over_grpc
    import tritonclient.http as over_http

    rows = [json.loads(line)["rows"][0] for line in bodies.read_bytes().split(b"\n")[:500]]
    found: dict[str, list[dict]] = {"V2 HTTP": [], "V2 gRPC": []}
    sides = (("V2 HTTP", over_http, port), ("V2 gRPC", over_grpc, grpc_port))
    for turn in range(ROUNDS):
        for name, triton, where in sides[:: -1 if turn % 2 else 1]:
            with triton.InferenceServerClient(f"127.0.0.1:{where}") as client:
                asked = []
                for row in rows:
                    tensors = [triton.InferInput(field, [1], "BYTES") for field in row]
                    for tensor, value in zip(tensors, row.values(), strict=True):
                        tensor.set_data_from_numpy(np.array([str(value)], object))
                    asked.append(tensors)
                taken = []
                for tensors in [*asked[:50], *asked]:
                    began = time.perf_counter()
                    client.infer(TASK, tensors)
                    taken.append(1000 * (time.perf_counter() - began))
            p50, p95, p99 = np.quantile(taken[50:], [0.5, 0.95, 0.99])
            found[name].append({"rps": 1000 / np.mean(taken[50:]), "p50": p50, "p95": p95, "p99": p99})
    return found


def main(root: Path, wanted: list[str]) -> None:
    prepare("make", str(root))
    one, hundred = root / "one.bodies", root / "hundred.bodies"
    with ExitStack() as up:
        sides: dict[str, tuple[int, str, Path]] = {}
        if "ray" in wanted:
            port, grpc_port = free_port(), free_port()
            began = time.perf_counter()
            family = up.enter_context(server("ray", str(root), str(port), str(grpc_port), port=port))
            print(f"cold start, command to ready: {time.perf_counter() - began:.1f} s")
            while not _answers(port + 1, "/no-op"):
                time.sleep(0.2)
            sides |= {"skewless": (port, PREDICT, one), "no-op": (port + 1, "/no-op", one)}
            sides["async log"] = port, PREDICT_ASYNCHRONOUS, one
            idle = pss_mb(family)
        if "uvicorn" in wanted:
            bare = free_port()
            up.enter_context(server("uvicorn", str(root), str(bare), port=bare))
            sides["uvicorn"] = (bare, PREDICT, one)
        if "stock" in wanted:
            stock, model = free_port(), free_port()
            folder = Path(up.enter_context(tempfile.TemporaryDirectory())) / "model"
            prepare("package", str(root), str(folder))
            words = ("models", "serve", "-m", str(folder), "-p", str(model), "--env-manager", "local", "-w", "1")
            up.enter_context(server("mlflow", *words, port=model, path="/ping"))
            up.enter_context(server("stock", str(root), str(stock), str(model), port=stock, path="/"))
            sides["stock"] = (stock, "/predict", one)
            if "ray" in wanted:
                print(agreement(one, sides))
        measure(root, sides, hundred)
        if "ray" in wanted:
            loaded = pss_mb(family)
            print(f"\nmemory (PSS, MB)   all of Ray: idle {idle[0]:.0f}, after the load {loaded[0]:.0f}")
            print(f"                   the replica: idle {idle[1]:.0f}, after the load {loaded[1]:.0f}")
            found = protocols(port, grpc_port, one)
            table("stock clients of the Open Inference Protocol, one client, one row", found)
            print(ratio(found, "V2 gRPC", "V2 HTTP", "p50"))


def agreement(bodies: Path, sides: dict[str, tuple[int, str, Path]]) -> str:
    """How far both answers to the same questions are apart."""
    apart = []
    for body in bodies.read_bytes().split(b"\n")[:200]:
        scores = []
        for name in ("skewless", "stock"):
            port, path, _ = sides[name]
            url, kind = f"http://127.0.0.1:{port}{path}", {"content-type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=kind)) as answer:
                found = json.load(answer)["predictions"]
            scores.append(found[0]["score"] if isinstance(found, list) else found["score"][0])
        apart.append(abs(scores[0] - scores[1]))
    same = sum(each < 1e-6 for each in apart)
    return f"answers of stock and skewless: {same} of {len(apart)} alike, at most {max(apart):.3g} apart"


def _answers(port: int, path: str) -> bool:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=b"{}", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except OSError:
        return False


def measure(root: Path, sides: dict[str, tuple[int, str, Path]], hundred: Path) -> None:
    alone = rounds(sides, clients=1)
    table("one client, one row", alone)
    for other in ("no-op", "uvicorn", "stock"):
        if other in sides and "skewless" in sides:
            print(ratio(alone, "skewless", other, "p50"))
            print(ratio(alone, "skewless", other, "p99"))
    if "async log" in sides:
        print(ratio(alone, "async log", "no-op", "p50"))
        print(ratio(alone, "async log", "no-op", "p99"))
    eight = rounds(sides, clients=8)
    table("eight clients, one row each", eight)
    if {"skewless", "stock"} <= set(sides):
        print(ratio(eight, "skewless", "stock", "rps"))
        print(ratio(eight, "skewless", "stock", "p99"))
    for clients in (1, 2):
        wanted = ("skewless", "uvicorn", *(["stock"] if clients == 1 else []))  # which takes half a second for each
        many = {name: (port, path, hundred) for name, (port, path, _) in sides.items() if name in wanted}
        table(f"{clients} client{'s' * (clients > 1)}, 100 rows a request", rounds(many, 3, clients=clients), 100)
    mine = {name: side for name, side in sides.items() if name in ("skewless", "uvicorn")}
    due = rounds(mine, 3, clients=32, rate=200.0, seconds=4.0)
    table("open loop, 200 requests/s due", due)
    if "skewless" in sides:
        found: dict[str, list[dict]] = {"alone": [], "with shadow": []}
        port = sides["skewless"][0]
        for turn in range(ROUNDS):
            for name in sorted(found, reverse=bool(turn % 2)):
                shadow(root, port, name == "with shadow")
                found[name].append(load(*sides["skewless"], clients=32, rate=200.0, seconds=4.0))
        shadow(root, port, False)
        table("shadow, open loop, 200 requests/s due", found)
        print(ratio(found, "with shadow", "alone", "p99"))
        print(ratio(found, "with shadow", "alone", "p50"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve(), sys.argv[2:] or list(SERVERS))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "project", list(SERVERS))
