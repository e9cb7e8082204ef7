"""Load tests against a server of our own making, whose every delay is known."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from loop.load_driver import Driven, drive, poisson_schedule
from loop.load_report import quantile_intervals, summarized, write_page


class Endpoint:
    """Answers one request at a time; `answer` says with which status, after which delay."""

    def __init__(self, answer: Callable[[int], tuple[int, float]]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        endpoint, lock = self, threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    status, delay = answer(len(endpoint.bodies))
                    endpoint.bodies.append(body)
                    endpoint.headers.append(dict(self.headers))
                    time.sleep(delay)
                if status == 0:
                    self.connection.close()
                    return
                variant = "canary" if body["n"] % 4 == 0 else "champion"
                told = json.dumps({"predictions": [{"variant": variant}]}, separators=(",", ":")).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1/tasks/x/predict"


@pytest.fixture
def endpoint() -> Iterator[Callable[..., Endpoint]]:
    made: list[Endpoint] = []

    def start(answer: Callable[[int], tuple[int, float]] = lambda n: (200, 0.0)) -> Endpoint:
        made.append(Endpoint(answer))
        return made[-1]

    yield start
    for each in made:
        each.server.shutdown()
        each.server.server_close()


def ask(endpoint: Endpoint, count: int = 60, rate: float = 200, **named: Any) -> Driven:
    bodies = [json.dumps({"n": n}).encode() for n in range(count)]
    return drive(endpoint.url, bodies, np.arange(count) / rate, **named)


def test_every_request_is_sent_once_and_its_end_is_known(endpoint: Any) -> None:
    server, told = endpoint(), []
    driven = ask(server, token="secret", progress=lambda done, total: told.append((done, total)))
    assert sorted(body["n"] for body in server.bodies) == list(range(60))
    assert driven.status.tolist() == [200] * 60
    assert driven.canary.tolist() == [n % 4 == 0 for n in range(60)]
    assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}
    assert told[-1] == (60, 60)


def test_what_queues_behind_a_stall_waits_in_the_figures_too(endpoint: Any) -> None:
    """One answer takes half a second: the requests due meanwhile are sent all the same, and their waiting counts.

    A caller that waits for each answer would have seen one slow request in sixty.
    """
    driven = ask(endpoint(lambda n: (200, 0.5 if n == 10 else 0.0)), rate=100)
    assert (driven.latency_ms > 100).sum() >= 30
    due_after = 500 - 10 * (np.arange(11, 50) - 10)  # what is left of the stall when each is due
    assert (driven.latency_ms[11:50] > due_after - 60).all()
    assert driven.seconds < 5


def test_failures_are_counted_by_their_kind(endpoint: Any) -> None:
    driven = ask(endpoint(lambda n: ({3: 0, 5: 500, 7: 503, 9: 422}.get(n, 200), 0.0)))
    test = summarized(driven, 200)
    assert (test.requests, test.failed, test.refused) == (60, 3, 1)
    assert test.canary_requests == 15
    assert test.canary_p99_ms is None  # of too few


def test_a_schedule_comes_at_its_rate_and_again_the_same() -> None:
    due = poisson_schedule(200, 20_000, 3)
    assert 20_000 / due[-1] == pytest.approx(200, rel=0.03)
    assert (np.diff(due) > 0).all()
    assert np.diff(due).std() == pytest.approx(1 / 200, rel=0.05)  # bursts as well as pauses
    assert (due == poisson_schedule(200, 20_000, 3)).all()


def test_intervals_cover_the_true_quantile_of_latencies_that_come_in_bursts() -> None:
    """99 ms in one stretch of fifty in a hundred: drawn one by one, the interval would cover far less often."""
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(60):
        burst = np.repeat(rng.random(100) < 0.02, 50)
        latency = rng.exponential(5, 5000) + np.where(burst, 60, 0)
        _, low, high = quantile_intervals(latency, seed=seed)["p95"]
        true = np.quantile(rng.exponential(5, 200_000) + np.where(rng.random(200_000) < 0.02, 60, 0), 0.95)
        covered += low <= true <= high
    assert covered >= 48


def test_quantiles_are_in_order_and_inside_their_intervals() -> None:
    found = quantile_intervals(np.random.default_rng(1).exponential(5, 3000))
    assert list(found) == ["p50", "p95", "p99", "p99.9"]
    assert all(low <= value <= high for value, low, high in found.values())
    assert sorted(value for value, _, _ in found.values()) == [value for value, _, _ in found.values()]


def test_the_page_holds_a_dot_for_each_request_and_needs_nothing_from_elsewhere(endpoint: Any, tmp_path: Any) -> None:
    driven = ask(endpoint())
    write_page(tmp_path / "a" / "page.html", "Load <test>", driven, summarized(driven, 200), 50)
    page = (tmp_path / "a" / "page.html").read_text()
    assert page.count("<circle") == 2 * 60
    assert "Load &lt;test&gt;" in page
    assert "http" not in page.replace("</html>", "")
