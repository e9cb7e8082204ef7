"""More than a replica can do, callers who have given up, and its end: what is refused is refused at once and whole."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from serving import log_segments
from serving.admission import Admission, TooLate, Workers, in_time
from serving.log_writer import Overloaded

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
    } | changes


def ask(served: Any, *rows: dict[str, Any], **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return served.request("POST", PREDICT, json={"rows": list(rows)}, headers=named)


class Busy:
    """Holds the threads of a replica until it is let go, with `more` computations behind them."""

    def __init__(self, workers: Workers, more: int = 0) -> None:
        self._workers = workers
        self._go = threading.Event()
        self._count = 8 + more

    async def __aenter__(self) -> None:
        self._held = [asyncio.create_task(self._workers.run(self._go.wait, 20)) for _ in range(self._count)]
        while self._workers._taken < self._count:
            await asyncio.sleep(0.01)

    async def __aexit__(self, *_: Any) -> None:
        self._go.set()
        await asyncio.gather(*self._held)


class TestDeadlines:
    def test_a_request_past_its_deadline_is_neither_computed_nor_logged(self, served: Any) -> None:
        before = served.balance()
        refused = ask(served, row(), x_request_deadline_ms="0")
        assert refused.status_code == 504
        assert "deadline was over" in refused.json()["error"]["message"]
        assert served.balance() == before
        assert ask(served, row(), x_request_deadline_ms="60000").status_code == 200

    @pytest.mark.parametrize("said", ["soon", "-5", "1.5", "9" * 12, ""])
    def test_one_that_is_no_number_is_told_so(self, served: Any, said: str) -> None:
        refused = ask(served, row(), x_request_deadline_ms=said)
        assert (refused.status_code, refused.json()["error"]["field"]) == (400, "x-request-deadline-ms")

    def test_one_that_passes_in_the_queue_is_not_computed_any_more(
        self, served: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = served.balance()
        many = [row(courier_id=i % 29 + 1) for i in range(100)]
        plan, computed = served.service.live.champion.plan, []
        through = plan.vectors
        monkeypatch.setattr(plan, "vectors", lambda *args: (computed.append(1), through(*args))[1])

        async def wait_in_vain() -> Any:
            async with Busy(served.replica._workers):
                headers = {"x-request-deadline-ms": "100"}
                asked = asyncio.create_task(served.send("POST", PREDICT, json={"rows": many}, headers=headers))
                await asyncio.sleep(0.2)
                assert not asked.done()
            return await asked

        assert asyncio.run(wait_in_vain()).status_code == 504
        assert (computed, served.balance()) == ([], before)
        assert ask(served, *many).status_code == 200
        assert computed == [1]

    def test_the_instant_itself_is_still_in_time(self) -> None:
        in_time(None)
        in_time(time.perf_counter() + 60)
        with pytest.raises(TooLate, match="ms ago"):
            in_time(time.perf_counter() - 1)


def value(served: Any, line: str) -> float:
    found = [each for each in served.request("GET", "/metrics").text.splitlines() if each.startswith(line)]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


def test_the_queue_before_the_threads_has_an_end(served: Any) -> None:
    async def one_too_many() -> tuple[Any, float]:
        async with Busy(served.replica._workers, more=128):
            waiting = served.replica._workers.waiting
            return await served.send("POST", PREDICT, json={"rows": [row(courier_id=i) for i in range(40)]}), waiting

    refused, waiting = asyncio.run(one_too_many())
    assert waiting == 128
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert value(served, "skewless_queue_depth") == 0
    assert ask(served, *[row(courier_id=i) for i in range(40)]).status_code == 200


def test_a_caller_that_goes_away_in_the_queue_leaves_its_place(served: Any) -> None:
    workers = served.replica._workers

    async def leave() -> None:
        async with Busy(workers):
            asked = asyncio.create_task(workers.run(time.sleep, 20))
            while workers.waiting < 1:
                await asyncio.sleep(0.01)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert workers.waiting == 0

    asyncio.run(asyncio.wait_for(leave(), 15))


def test_a_task_takes_no_more_than_its_share_and_all_no_more_than_the_replica() -> None:
    admission = Admission({"a": 2, "b": 5}, most=4)
    admission.enter("a")
    admission.enter("a")
    with pytest.raises(Overloaded, match="2 of this task"):
        admission.enter("a")
    admission.enter("b")
    admission.enter("b")
    with pytest.raises(Overloaded, match="4 requests are under way"):
        admission.enter("b")
    admission.leave("a")
    admission.enter("b")
    assert (admission.in_flight, admission.refused) == ({"a": 1, "b": 3}, {"a": 1, "b": 1})


class TestTheEnd:
    @pytest.fixture
    def listening(self, served: Any) -> Iterator[Any]:
        server = uvicorn.Server(uvicorn.Config(served.replica.asgi, port=0, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()
        served.replica.admission.draining = False

    def test_draining_under_load_fails_no_request(self, served: Any, listening: Any) -> None:
        """Callers behind a balancer, which stops sending when `/readyz` says so."""
        server, url = listening
        before, over = served.balance().answered, threading.Event()
        statuses: list[int] = []
        failures: list[Exception] = []
        closing: list[str] = []

        def call() -> None:
            with httpx.Client(base_url=url) as client:
                while not over.is_set():
                    try:
                        answer = client.post(PREDICT, json={"rows": [row()]})
                    except httpx.TransportError as error:
                        failures.append(error)
                        return
                    statuses.append(answer.status_code)
                    closing.append(answer.headers.get("connection", ""))

        callers = [threading.Thread(target=call) for _ in range(4)]
        for each in callers:
            each.start()
        deadline = time.monotonic() + 30
        with httpx.Client(base_url=url) as balancer:
            while len(statuses) < 20 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert balancer.get("/readyz").status_code == 200
            served.replica.drain()
            seen = len(statuses)
            while len(statuses) < seen + 8 and time.monotonic() < deadline:
                time.sleep(0.01)
            ready = balancer.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        over.set()
        for each in callers:
            each.join()
        server.should_exit = True
        assert (failures, set(statuses)) == ([], {200})
        assert closing[-1] == "close"
        assert served.balance().answered - before == len(statuses)

    def test_what_is_under_way_at_the_end_is_finished(
        self, served: Any, listening: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server, url = listening
        go = threading.Event()
        through = log_segments.append
        monkeypatch.setattr(log_segments, "append", lambda *args, **named: (go.wait(20), through(*args, **named))[1])
        answers: list[Any] = []
        caller = threading.Thread(target=lambda: answers.append(httpx.post(url + PREDICT, json={"rows": [row()]})))
        caller.start()
        deadline = time.monotonic() + 20
        while not served.service.writer.counters.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        server.should_exit = True
        time.sleep(0.2)
        go.set()
        caller.join()
        assert [answer.status_code for answer in answers] == [200]
