"""An online store that is gone, locked, killed or hanging: what is declared is answered, says so, and ends with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.serving_policy import Degradation
from contracts.task import TaskError
from serving.online import ViewSpec
from serving.online_feast import StoreReader
from serving.standins import UNREACHABLE, StandIns, UnknownStandIn

NOW = datetime(2024, 3, 5, 10, 30, tzinfo=UTC)
PREDICT = "/v1/tasks/parcel_late/predict"
Serve = Callable[..., Any]
LENIENT = """
otherwise = "last_good"
fallback = true
read_timeout = "0.3s"
breaker_failures = 3
breaker_rest = "0.1s"
views = {load = "default", city = "default"}
defaults = {city = {city_load = 0.25}}
"""


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


def declare(project: Any, section: str) -> None:
    file = project.root / "tasks" / "parcel_late.toml"
    file.write_text(f"{file.read_text()}\n[degradation]\n{section}")


def metrics(served: Any) -> str:
    text: str = served.request("GET", "/metrics").text
    return text


def test_each_view_answers_as_declared_and_says_so(serve: Serve, couriers: Any) -> None:
    declare(couriers, LENIENT)
    couriers.deploy(1, (1, couriers.bundle("one", fallback=0.3)))
    served = serve()
    before = served.ask(row()).json()
    assert before["degraded"] == []
    online = couriers.repo / "data" / "online.db"
    shutil.move(online, couriers.root / "kept")
    during = served.ask(row(), row(courier_id=8), row(depot_id="south", courier_id=None), request_id="r").json()
    assert during["degraded"] == [
        *(f"rows[0]: {view}: last good" for view in ("weather", "person", "pair")),
        "rows[0]: city: default",
        "rows[0]: load: default",
        f"rows[1]: {UNREACHABLE}",
        f"rows[2]: {UNREACHABLE}",
    ]
    assert [each["score"] for each in during["predictions"][1:]] == [pytest.approx(0.3)] * 2
    assert during["predictions"][0]["score"] != before["predictions"][0]["score"]
    first, second, third = [each for each in served.logged() if each["request_id"] == "r"]
    assert (first["feature.temperature"], first["feature.age"], first["feature.trips"]) == (21.5, 27, 4)
    assert (first["feature.city_load"], first["feature.load_count_1h"]) == (0.25, 0)
    assert set(first["degraded"].split(",")) == {
        "weather: last good",
        "person: last good",
        "pair: last good",
        "city: default",
        "load: default",
    }
    assert second["degraded"] == third["degraded"] == UNREACHABLE
    assert f'skewless_degraded_rows_total{{reason="{UNREACHABLE}",task="parcel_late"}} 2.0' in metrics(served)
    assert 'skewless_degraded_rows_total{reason="city: default",task="parcel_late"} 1.0' in metrics(served)
    again = served.ask(row(), row(courier_id=8), row(depot_id="south", courier_id=None), request_id="r").json()
    assert again["degraded"] == ["repeated", *during["degraded"]]
    shutil.move(couriers.root / "kept", online)
    served.wait_for(lambda: served.ask(row()).json()["degraded"] == [])
    after = served.ask(row()).json()
    assert after["predictions"] == before["predictions"]
    assert served.balance().balanced


def test_a_last_row_keeps_to_its_ttl_and_to_how_long_it_may_stand_in(serve: Serve, couriers: Any) -> None:
    declare(couriers, 'otherwise = "last_good"\nlast_good_for = "0.5s"')
    couriers.deploy(1, (1, couriers.bundle("one")))
    served = serve()
    assert served.ask(row()).status_code == 200
    (couriers.repo / "data" / "online.db").unlink()
    served.clock.advance(timedelta(hours=4))
    assert served.ask(row()).json()["degraded"] != []
    last = served.logged()[-1]
    assert (last["feature.temperature"], last["feature.age"]) == (None, 27)  # three hours is the weather's TTL
    served.wait_for(lambda: served.ask(row()).status_code == 503)


def test_nothing_stands_in_that_was_not_declared(serve: Serve, couriers: Any) -> None:
    declare(couriers, 'otherwise = "default"\nviews = {person = "refuse"}\nbreaker_failures = 2\nbreaker_rest = "1h"')
    couriers.deploy(1, (1, couriers.bundle("one")))
    served = serve()
    (couriers.repo / "data" / "online.db").unlink()
    told = [served.ask(row()) for _ in range(4)]
    assert [each.status_code for each in told] == [503] * 4
    assert {each.headers["retry-after"] for each in told} == {"1"}
    assert "not asked for a while" in told[-1].json()["error"]["message"]
    assert served.ask(row(courier_id=None)).json()["degraded"] != []  # nobody is asked about a courier
    text = metrics(served)
    assert 'skewless_store_breaker_state{task="parcel_late"} 2.0' in text
    assert 'skewless_store_failures_total{task="parcel_late"} 2.0' in text
    assert 'skewless_store_breaker_opened_total{task="parcel_late"} 1.0' in text
    assert 'skewless_store_reads_spared_total{task="parcel_late"} 3.0' in text
    assert served.balance().answered == 1


def test_a_locked_store_is_waited_for_beside_the_loop(serve: Serve, couriers: Any) -> None:
    declare(couriers, 'otherwise = "default"\nread_timeout = "0.5s"')
    couriers.deploy(1, (1, couriers.bundle("one")))
    served = serve()

    async def ask() -> Any:
        waiting = asyncio.create_task(served.send("POST", PREDICT, json={"rows": [row()]}))
        await asyncio.sleep(0.05)
        assert (await served.send("GET", "/healthz")).status_code == 200
        assert served.replica._workers._taken == 1  # a thread waits; the loop does not
        return await waiting

    online = couriers.repo / "data" / "online.db"
    with closing(sqlite3.connect(online, isolation_level=None)) as locker:
        locker.execute("pragma locking_mode = exclusive")
        locker.execute("begin exclusive")
        held = asyncio.run(ask())
    assert held.status_code == 200
    assert len(held.json()["degraded"]) == 5
    assert served.ask(row()).json()["degraded"] == []


@pytest.fixture
def redis_project(make_project: Any, redis_server: Any, tmp_path: Path) -> Any:
    redis_server.flush()
    online = f"{{type: redis, connection_string: '{redis_server.connection_string}'}}"
    project = make_project(tmp_path / "on_redis", online)
    file = project.root / "tasks" / "parcel_late.toml"  # a store that comes back empty knows no depot for a while
    file.write_text(file.read_text().replace('refuse_unknown = ["depot_id"]', "refuse_unknown = []"))
    declare(project, LENIENT)
    project.deploy(1, (1, project.bundle("one")))
    return project


class Load:
    """Four callers who ask without a pause, and what they were told."""

    def __init__(self, served: Any) -> None:
        self.served = served
        self.statuses: Counter[int] = Counter()
        self.full = self.degraded = 0
        self.over = False

    async def ask(self) -> None:
        while not self.over:
            answer = await self.served.send("POST", PREDICT, json={"rows": [row()]})
            self.statuses[answer.status_code] += 1
            if answer.status_code == 200:
                self.full += not answer.json()["degraded"]
                self.degraded += bool(answer.json()["degraded"])

    async def during(self, faults: Callable[[Load], Any]) -> None:
        callers = [asyncio.create_task(self.ask()) for _ in range(4)]
        try:
            await asyncio.wait_for(faults(self), 60)
        finally:
            self.over = True
            await asyncio.gather(*callers)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.01)


def test_redis_killed_and_started_again_under_load(
    serve: Serve, redis_project: Any, redis_server: Any, fill_store: Any
) -> None:
    served = serve(redis_project)
    breaker = served.replica.breakers["parcel_late"]

    async def faults(load: Load) -> None:
        await load.until(lambda: load.full >= 10)
        redis_server.stop()
        seen = load.degraded
        await load.until(lambda: load.degraded >= seen + 10 and breaker.opened > 0)
        redis_server.start()
        await asyncio.to_thread(fill_store, redis_project.store())
        await load.until(lambda: breaker.state == "closed")
        seen = load.full
        await load.until(lambda: load.full >= seen + 10)

    load = Load(served)
    asyncio.run(load.during(faults))
    assert set(load.statuses) == {200}
    assert breaker.spared > 0
    logged = served.logged("champion")
    assert len(logged) == served.balance().answered == load.full + load.degraded
    assert sum(bool(each["degraded"]) for each in logged) == load.degraded


def test_a_store_that_hangs_stalls_nobody(serve: Serve, redis_project: Any, redis_server: Any) -> None:
    served = serve(redis_project)

    async def faults(load: Load) -> None:
        await load.until(lambda: load.full >= 10)
        os.kill(redis_server._process.pid, signal.SIGSTOP)
        try:
            seen = load.degraded
            await load.until(lambda: load.degraded >= seen + 20)
            assert (await served.send("GET", "/readyz")).status_code == 200
        finally:
            os.kill(redis_server._process.pid, signal.SIGCONT)
        seen = load.full
        await load.until(lambda: load.full >= seen + 10)

    load = Load(served)
    asyncio.run(load.during(faults))
    assert set(load.statuses) == {200}
    assert served.balance().logged == load.full + load.degraded


def test_a_store_without_a_timeout_of_its_own_is_given_one(redis_project: Any, redis_server: Any) -> None:
    from feast.value_type import ValueType

    from serving.online import StoreUnavailable

    store = redis_project.store()
    view = store.get_feature_view("person")
    spec = ViewSpec("person", "person", ("courier_id",), ("courier_id",), ("age",), 0, 0)
    reader = StoreReader(store, {"person": view}, {"courier_id": ValueType.INT64}, timeout=0.3)
    assert reader.read([(spec, [(7,)])])[0][0][1] == (27,)
    os.kill(redis_server._process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match=r"no answer within 0\.3 s"):
            reader.read([(spec, [(7,)])])
    finally:
        os.kill(redis_server._process.pid, signal.SIGCONT)


class TestDeclarations:
    @pytest.mark.parametrize(
        ("section", "told"),
        [
            ('otherwise = "guess"', "degradation.otherwise"),
            ("defaults = {city = {city_load = 1}}", "'city', whose stand-in is 'refuse'"),
            ('read_timeout = "0s"', "degradation.read_timeout = '0s'"),
        ],
    )
    def test_a_wrong_one_is_met_at_load(self, applied: Any, tmp_path: Path, section: str, told: str) -> None:
        from contracts.task import load_task

        for name in ("parcel_late.toml", "parcel_late.sql"):
            shutil.copy(applied.root / "tasks" / name, tmp_path / name)
        file = tmp_path / "parcel_late.toml"
        file.write_text(f"{file.read_text()}\n[degradation]\n{section}\n")
        with pytest.raises(TaskError, match=told):
            load_task(file)

    @pytest.mark.parametrize(
        ("policy", "told"),
        [
            (Degradation(views={"wether": "default"}), "did you mean 'weather'"),
            (Degradation(otherwise="default", defaults={"weather": {"zzz": 1.0}}), "known are rain, temp"),
        ],
    )
    def test_one_that_names_what_is_not_there_is_met_at_start(self, policy: Degradation, told: str) -> None:
        from serving.standins import check

        view = ViewSpec("weather", "weather", ("k",), ("k",), ("temp", "rain"), 0, 0)
        with pytest.raises(UnknownStandIn, match=told):
            check(policy, [view], "t")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.standins._KEPT", 100)
    view = ViewSpec("v", "v", ("k",), ("k",), ("x",), 0, 0)
    kept = StandIns(Degradation(otherwise="last_good"), [view], now=lambda: 0.0)
    for i in range(1000):
        kept.remember([(view, [(i,)])], [[(i, (i,))]])
    memory = kept._memories["v"]
    assert len(memory._newer) + len(memory._older) <= 200
    _, [rows], stood_in = kept.answer([(view, [(i,) for i in range(1000)])], [list(range(1000))], 1000)
    assert rows[900:] == [(i, (i,)) for i in range(900, 1000)]
    assert 800 <= len(stood_in.refused) < 900
