"""One replica through its life: versions come and go, stores and disks fail, requests are asked twice."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.clock import VirtualClock
from contracts.predictions import open_segment
from contracts.task import TaskError
from serving import log_segments
from serving.replica import DeadThread, NothingToServe, Replica
from serving.requests import SchemaError

NOW = datetime(2024, 3, 5, 10, 30, tzinfo=UTC)
Serve = Callable[..., Any]


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


def test_version_zero_answers_the_fallback_and_logs_the_vector(serve: Serve, couriers: Any) -> None:
    couriers.deploy(1, (0, couriers.bundle("one", fallback=0.3, threshold=0.25)))
    served = serve()
    told = served.ask(row()).json()["predictions"][0]
    assert (told["version"], told["decision"], told["score"]) == (0, 1, pytest.approx(0.3))
    assert served.logged()[0]["feature.temperature"] == 21.5


class TestShadow:
    def test_it_scores_the_same_vectors_after_the_answer(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")), (2, couriers.bundle("two", weight=-0.4)), "shadow")
        served = serve()
        answer = served.ask(row(), row(depot_id="south", courier_id=None)).json()
        assert {each["version"] for each in answer["predictions"]} == {1}
        served.wait_for(lambda: len(served.logged("shadow")) == 2)
        answered, shadowed = served.logged("champion"), served.logged("shadow")
        assert [each["version"] for each in shadowed] == [2, 2]
        for ours, theirs in zip(answered, shadowed, strict=True):
            same = [name for name in ours if name.startswith("feature.")] + ["inputs", "view_times", "event_timestamp"]
            assert [repr(ours[name]) for name in same] == [repr(theirs[name]) for name in same]
            assert ours["score"] != theirs["score"]
        assert served.balance().logged == 2

    def test_one_that_fails_is_not_felt(self, serve: Serve, couriers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")), (2, couriers.bundle("two")), "shadow")
        served = serve()
        challenger = served.service.live.challenger
        monkeypatch.setattr(type(challenger.scorer), "predict", scoring_that_fails_for(challenger.scorer))
        assert served.ask(row()).status_code == 200
        served.wait_for(lambda: 'skewless_shadow_dropped_total{task="parcel_late"} 1.0' in metrics(served))
        assert served.ask(row()).status_code == 200
        assert served.logged("shadow") == []

    def test_one_that_lags_is_dropped_and_counted(
        self, serve: Serve, couriers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("serving.shadows._BACKLOG", 0)
        couriers.deploy(1, (1, couriers.bundle("one")), (2, couriers.bundle("two")), "shadow")
        served = serve()
        assert served.ask(row()).status_code == 200
        assert 'skewless_shadow_dropped_total{task="parcel_late"} 1.0' in metrics(served)

    def test_one_with_fewer_features_reads_its_own(self, serve: Serve, couriers: Any) -> None:
        few = couriers.bundle("few", features=("age", "temperature"))
        couriers.deploy(1, (1, couriers.bundle("one")), (2, few), "shadow")
        served = serve()
        assert served.ask(row()).status_code == 200
        served.wait_for(lambda: len(served.logged("shadow")) == 1)
        shadow = served.logged("shadow")[0]
        assert (shadow["feature.age"], shadow["feature.temperature"], shadow["feature.trips"]) == (27, 21.5, None)

    def test_closing_waits_for_it(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")), (2, couriers.bundle("two")), "shadow")
        served = serve()
        for _ in range(20):
            served.ask(row())
        served.replica.close()
        assert len(served.logged("shadow")) == 20
        served.replica.services.clear()


def scoring_that_fails_for(broken: Any) -> Any:
    through = type(broken).predict

    def predict(self: Any, numbers: Any, texts: Any) -> Any:
        if self is broken:
            raise RuntimeError("out of order")
        return through(self, numbers, texts)

    return predict


def metrics(served: Any) -> str:
    text: str = served.request("GET", "/metrics").text
    return text


def outcomes(served: Any, generation: int) -> dict[str, tuple[int, int]]:
    from contracts.state import open_state
    from serving.outcomes import read_outcomes

    engine = open_state(served.couriers.locations.state_url)
    with engine.begin() as connection:
        found = read_outcomes(connection, "parcel_late", generation)
    engine.dispose()
    return {variant: (each.requests, each.failed) for variant, each in found.items()}


class TestCanary:
    def test_a_key_stays_with_its_version_and_shares_only_grow(self, serve: Serve, couriers: Any) -> None:
        one, two = couriers.bundle("one"), couriers.bundle("two", weight=-0.4)
        couriers.deploy(1, (1, one), (2, two), "canary", 0.1)
        served = serve()
        rows = [row(courier_id=each % 29 + 1, depot_id=("north", "south")[each % 2]) for each in range(58)]

        def chosen(challenger: int = 2) -> list[bool]:
            told = served.ask(*rows).json()["predictions"]
            assert {(each["variant"], each["version"]) for each in told} <= {("champion", 1), ("canary", challenger)}
            return [each["variant"] == "canary" for each in told]

        few = chosen()
        assert chosen() == few
        served.deploy(2, (1, one), (2, two), "canary", 0.5)
        more = chosen()
        assert all(later for earlier, later in zip(few, more, strict=True) if earlier)
        assert 0.2 < np.mean(more) < 0.8
        served.deploy(3, (1, one), (3, two), "canary", 0.5)
        assert chosen(3) != more  # another challenger meets other keys
        assert served.balance().balanced

    def test_the_share_of_keys_is_the_share_asked_for(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        service = serve().service
        from serving.requests import Asked

        inputs = [{"depot_id": f"d{i}", "courier_id": i} for i in range(20_000)]
        asked = Asked("r", False, {}, [], [], inputs)
        for share in (0.05, 0.3):
            hit = np.mean([service._is_canary(asked, i, 2, share) for i in range(len(inputs))])
            assert abs(hit - share) < 5 * np.sqrt(share * (1 - share) / len(inputs))

    def test_it_is_mirrored_on_the_keys_it_does_not_answer(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")), (2, couriers.bundle("two", weight=-0.4)), "canary", 0.5)
        served = serve()
        told = served.ask(*[row(courier_id=i) for i in range(1, 30)]).json()["predictions"]
        others = {i for i, each in enumerate(told) if each["variant"] == "champion"}
        assert 0 < len(others) < 29
        served.wait_for(lambda: len(served.logged("shadow")) == len(others))
        assert {each["position"] for each in served.logged("shadow")} == others
        assert {each["version"] for each in served.logged("shadow")} == {2}
        assert served.balance().logged == 29

    def test_the_champion_answers_for_one_that_fails_and_the_failure_is_counted(
        self, serve: Serve, couriers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        couriers.deploy(7, (1, couriers.bundle("one")), (2, couriers.bundle("two")), "canary", 0.5)
        served = serve()
        challenger = served.service.live.challenger
        monkeypatch.setattr(type(challenger.scorer), "predict", scoring_that_fails_for(challenger.scorer))
        answers = [served.ask(row(courier_id=i)) for i in range(1, 21)]
        assert {each.status_code for each in answers} == {200}
        assert {each.json()["predictions"][0]["version"] for each in answers} == {1}
        served.wait_for(lambda: outcomes(served, 7).get("champion", (0,))[0] == 20)
        counts = outcomes(served, 7)
        assert counts["champion"] == (20, 0)
        assert counts["canary"][0] == counts["canary"][1] > 0  # every request of its own
        assert counts["shadow"][0] == counts["shadow"][1] == 20 - counts["canary"][0]  # and every mirrored one

    def test_how_requests_end_is_counted_by_version_and_step(
        self, serve: Serve, couriers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        couriers.deploy(3, (1, couriers.bundle("one")), (2, couriers.bundle("two")), "canary", 0.5)
        served = serve()
        served.ask(*[row(courier_id=i) for i in range(1, 30)])  # one request that both have a part in
        assert served.ask(row(depot_id="nowhere")).status_code == 422  # the caller's fault is nobody's failure
        served.wait_for(lambda: outcomes(served, 3) == dict.fromkeys(("champion", "canary", "shadow"), (1, 0)))
        served.deploy(4, (1, couriers.locations.bundles("parcel_late") / "one"))
        served.ask(row())
        assert outcomes(served, 4) == {}  # nothing climbs, nothing is counted

    def test_a_rehearsal_is_answered_like_any_other_and_is_evidence_of_nothing(
        self, serve: Serve, couriers: Any
    ) -> None:
        couriers.deploy(5, (1, couriers.bundle("one")), (2, couriers.bundle("two")), "canary", 0.5)
        served = serve()
        rows = [row(courier_id=i) for i in range(1, 30)]
        told = served.ask(*rows, request_id="rehearsal-1").json()
        variants = [each["variant"] for each in told["predictions"]]
        assert set(variants) == {"champion", "canary"}
        assert served.ask(*rows, request_id="rehearsal-1").json()["degraded"] == []  # asked again, computed again
        logged = lambda: served.logged(*(f"rehearsal-{each}" for each in ("champion", "canary", "shadow")))  # noqa: E731
        served.wait_for(lambda: len(logged()) == 29 + variants.count("champion"))  # the mirrored ones too
        assert served.logged() == []
        assert served.balance().answered == served.balance().logged == 0
        served.ask(row())
        served.wait_for(lambda: sum(requests for requests, _ in outcomes(served, 5).values()) >= 1)
        assert sum(requests for requests, _ in outcomes(served, 5).values()) <= 2  # of the last request alone

    def test_a_paused_challenger_answers_nobody(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")), (2, couriers.bundle("two")), "paused", 0.5)
        served = serve()
        assert {
            each["version"] for each in served.ask(*[row(courier_id=i) for i in range(20)]).json()["predictions"]
        } == {1}
        assert {each["variant"] for each in served.logged()} == {"champion"}

    def test_versions_with_other_features_share_one_request(self, serve: Serve, couriers: Any) -> None:
        few = couriers.bundle("few", features=("age", "temperature"))
        couriers.deploy(1, (1, couriers.bundle("one")), (2, few), "canary", 0.5)
        served = serve()
        told = served.ask(*[row(courier_id=i) for i in range(1, 30)]).json()["predictions"]
        assert {each["version"] for each in told} == {1, 2}
        assert [
            each["feature.age"]
            for each in sorted(served.logged("champion", "canary"), key=lambda each: each["position"])
        ] == list(range(21, 50))
        assert served.balance().logged == 29


def test_a_task_may_answer_before_it_logs(serve: Serve, couriers: Any) -> None:
    file = couriers.root / "tasks" / "parcel_late.toml"
    file.write_text(file.read_text().replace("[serving]\n", '[serving]\nlog = "async"\n'))
    couriers.deploy(1, (1, couriers.bundle("one")))
    served = serve()
    for _ in range(20):
        assert served.ask(row()).status_code == 200
    assert "skewless_lost_total" in metrics(served)
    assert list(couriers.locations.predictions("parcel_late").glob("*.account"))
    served.replica.close()
    assert served.balance().answered == served.balance().logged == 20
    served.replica.services.clear()


def test_a_clock_that_steps_loses_and_repeats_no_answer(
    serve: Serve, couriers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    couriers.deploy(1, (1, couriers.bundle("one")))
    served = serve()
    for hours in (0, -1, 25, -48, 0):  # set back, over midnight, far back, and right again
        monkeypatch.setattr(served.service, "_clock", VirtualClock(NOW + timedelta(hours=hours)))
        for _ in range(4):
            assert served.ask(row()).status_code == 200
    assert served.balance().answered == served.balance().logged == 20
    ids = [each["request_id"] for each in served.logged()]
    assert len(set(ids)) == 20


class TestSwap:
    def test_no_request_fails_and_no_old_answer_follows_a_new_one(self, serve: Serve, couriers: Any) -> None:
        bundles = [couriers.bundle(f"v{i}", bias=float(i)) for i in range(1, 5)]
        couriers.deploy(1, (1, bundles[0]))
        served = serve()
        seen: list[list[int]] = [[] for _ in range(4)]

        async def client(mine: list[int]) -> None:
            while mine[-1:] != [4]:
                answer = await served.send("POST", "/v1/tasks/parcel_late/predict", json={"rows": [row()]})
                assert answer.status_code == 200
                mine.append(answer.json()["predictions"][0]["version"])

        async def administrator() -> None:
            for generation in (2, 3, 4):
                await asyncio.to_thread(couriers.deploy, generation, (generation, bundles[generation - 1]))
                while served.service.live.deployment.generation != generation:
                    await asyncio.sleep(0.01)

        async def everybody() -> None:
            await asyncio.gather(administrator(), *(client(each) for each in seen))

        asyncio.run(asyncio.wait_for(everybody(), 60))
        for mine in seen:
            assert mine == sorted(mine)
        assert served.balance().answered == served.balance().logged == sum(map(len, seen))

    def test_a_broken_challenger_leaves_the_champion_alone(self, serve: Serve, couriers: Any) -> None:
        one, two = couriers.bundle("one"), couriers.bundle("two")
        (two / "model.onnx").write_bytes(b"altered")
        couriers.deploy(1, (1, one), (2, two), "canary", 1.0)
        served = serve()
        assert served.ask(row()).json()["predictions"][0]["version"] == 1
        state = served.state()
        assert (state["ready"], state["generation"]) == (True, 1)
        assert "model.onnx" in state["error"]

    def test_a_broken_champion_does_not_replace_a_sound_one(self, serve: Serve, couriers: Any) -> None:
        one, two = couriers.bundle("one"), couriers.bundle("two")
        couriers.deploy(1, (1, one))
        served = serve()
        kept = (two / "model.onnx").read_bytes()
        (two / "model.onnx").write_bytes(b"altered")
        couriers.deploy(2, (2, two))
        served.wait_for(lambda: "model.onnx" in served.state().get("error", ""))
        assert served.ask(row()).json()["predictions"][0]["version"] == 1
        (two / "model.onnx").write_bytes(kept)
        served.wait_for(
            lambda: (
                served.state()
                == {
                    "ready": True,
                    "generation": 2,
                    "champion": 2,
                    "challenger": None,
                    "stage": "idle",
                    "share": 0.0,
                }
            )
        )

    def test_a_version_of_other_definitions_is_refused(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")), (2, couriers.bundle("two", fingerprint="0" * 64)), "shadow")
        served = serve()
        assert served.ask(row()).status_code == 200
        assert "fingerprint 000000000000" in served.state()["error"]

    def test_definitions_applied_while_serving_are_picked_up_by_a_version_trained_on_them(
        self, serve: Serve, couriers: Any
    ) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve()
        before = served.ask(row()).json()["predictions"][0]["score"]
        couriers.redefine("t * 2 + w", "-t * 2 - w")
        assert (
            served.ask(row()).json()["predictions"][0]["score"] == before
        )  # the running version keeps its definitions
        served.deploy(2, (2, couriers.bundle("two")))
        assert served.ask(row()).json()["predictions"][0]["score"] < before

    def test_the_champion_keeps_the_definitions_it_was_trained_on_while_a_challenger_climbs(
        self, serve: Serve, couriers: Any
    ) -> None:
        one = couriers.bundle("one")
        couriers.deploy(1, (1, one))
        served = serve()
        before = served.ask(row()).json()["predictions"][0]["score"]
        couriers.redefine("t * 2 + w", "-t * 2 - w")
        two = couriers.bundle("two")
        for generation, stage in ((2, "shadow"), (3, "canary"), (4, "canary")):
            served.deploy(generation, (1, one), (2, two), stage, 0.0)
            assert served.ask(row()).json()["predictions"][0] | {"version": 1, "score": before} == {
                "parcel": None,
                "score": before,
                "decision": 1,
                "variant": "champion",
                "version": 1,
            }
        served.deploy(5, (1, one), (2, two), "canary", 1.0)
        told = served.ask(row()).json()["predictions"][0]
        assert (told["version"], told["score"] < before) == (2, True)

    def test_a_version_that_needs_what_no_request_carries_is_refused(self, serve: Serve, couriers: Any) -> None:
        one = couriers.bundle("one")
        couriers.deploy(1, (1, one))
        served = serve()
        label = 'Field(name="label", dtype=String)'
        couriers.redefine(label, f'{label}, Field(name="hue", dtype=String)')
        couriers.redefine("t * 2 + w", "t * 2 - w")  # Feast takes a new request field only with a new function
        couriers.deploy(2, (2, couriers.bundle("two")))
        served.wait_for(lambda: "reads 'hue'" in served.state().get("error", ""))
        assert served.ask(row()).json()["predictions"][0]["version"] == 1

    def test_a_version_that_wants_unknown_features_is_refused(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one", features=("age", "charm"))))
        served = serve()
        assert "'charm' as number" in served.state()["error"]
        assert served.request("GET", "/readyz").status_code == 503

    def test_without_a_deployment_nothing_is_answered_until_there_is_one(self, serve: Serve, couriers: Any) -> None:
        served = serve()
        refused = served.ask(row())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert served.state() == {"ready": False, "error": "no version is deployed"}
        served.deploy(1, (1, couriers.bundle("one")))
        assert served.ask(row()).status_code == 200


class TestRepeatedRequests:
    def test_the_first_answer_is_given_again_and_not_counted(self, serve: Serve, couriers: Any) -> None:
        one, two = couriers.bundle("one"), couriers.bundle("two", weight=-0.4)
        couriers.deploy(1, (1, one))
        served = serve()
        first = served.ask(row(parcel="a"), row(parcel="b"), request_id="mine").json()
        served.deploy(2, (2, two))
        again = served.ask(row(parcel="a"), row(parcel="b"), request_id="mine").json()
        assert again == first | {"degraded": ["repeated"]}
        assert (served.balance().answered, served.balance().logged) == (2, 2)
        other = served.ask(row(parcel="a"), request_id="mine")
        assert (other.status_code, other.json()["error"]["field"]) == (422, "request_id")
        assert served.ask(row(parcel="a"), row(parcel="c"), request_id="mine").status_code == 422

    def test_the_replica_that_follows_a_killed_one_knows_it(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        killed = serve()
        first = killed.ask(row(), request_id="mine").json()
        for segment in killed.service.writer._segments.values():  # what the operating system does at a kill
            segment._lock.close()
        follower = serve()
        assert follower.ask(row(), request_id="mine").json() == first | {"degraded": ["repeated"]}
        assert follower.balance().answered == 1
        killed.service.writer._segments.clear()

    def test_asked_twice_at_once_it_is_logged_once(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve()

        async def twice() -> Any:
            content = {"rows": [row()], "request_id": "mine"}
            return await asyncio.gather(
                *(served.send("POST", "/v1/tasks/parcel_late/predict", json=content) for _ in range(5))
            )

        answers = asyncio.run(twice())
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["predictions"][0]["score"] for answer in answers}) == 1
        assert (served.balance().answered, served.balance().logged) == (1, 1)


class TestFaults:
    def test_a_full_disk_stops_answers_rather_than_losing_them(
        self, serve: Serve, couriers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[sqlite3.Connection] = []

        def limited(path: Path, features: Any) -> sqlite3.Connection:
            opened.append(open_segment(path, features))
            opened[-1].execute("pragma max_page_count = 14")
            return opened[-1]

        monkeypatch.setattr(log_segments, "open_segment", limited)
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve()
        answers = [served.ask(row(label="x" * 2000)) for _ in range(40)]
        good = sum(answer.status_code == 200 for answer in answers)
        assert 0 < good < 40
        assert {answer.status_code for answer in answers} == {200, 503}
        assert {answer.headers.get("retry-after") for answer in answers} == {None, "5"}
        assert served.balance().answered == served.balance().logged == good
        opened[0].execute("pragma max_page_count = 100000")
        assert served.ask(row()).status_code == 200

    def test_an_online_store_that_is_gone_and_comes_back(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve()
        online = couriers.repo / "data" / "online.db"
        shutil.move(online, couriers.root / "kept")
        refused = served.ask(row())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        shutil.move(couriers.root / "kept", online)
        assert served.ask(row()).status_code == 200
        assert served.balance().answered == 1

    def test_a_model_that_fails_is_a_500_that_logs_nothing(
        self, serve: Serve, couriers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve()
        scorer = served.service.live.champion.scorer
        monkeypatch.setattr(type(scorer), "score", scoring_that_fails_for(scorer))
        refused = served.ask(row())
        assert refused.status_code == 500
        assert "out of order" in refused.json()["error"]["message"]
        monkeypatch.setattr(type(scorer), "score", lambda self, numbers, texts: np.array([np.nan], np.float32))
        assert served.ask(row()).status_code == 500
        assert served.balance().answered == 0

    def test_an_on_demand_view_that_fails_is_a_500_that_names_it(
        self, serve: Serve, couriers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A store may answer the next time; a function fails again on the same values, so nobody is to come back."""
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve()
        plan = served.service.live.champion.plan
        broken = [replace(each, run=lambda given, count: {"heat": [1 / 0]}) for each in plan._transforms]
        monkeypatch.setattr(plan, "_transforms", broken)
        refused = served.ask(row())
        assert (refused.status_code, refused.headers.get("retry-after")) == (500, None)
        assert (
            "On-demand view 'derived' failed on these values: ZeroDivisionError" in refused.json()["error"]["message"]
        )
        assert served.balance().answered == 0

    def test_more_requests_than_it_takes_are_told_when_to_return(
        self, serve: Serve, couriers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go = threading.Event()
        through = log_segments.append
        monkeypatch.setattr(log_segments, "append", lambda *args, **named: (go.wait(20), through(*args, **named))[1])
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve()
        monkeypatch.setattr(served.replica.admission, "most", 3)

        async def crowd() -> list[Any]:
            asked = [
                asyncio.create_task(served.send("POST", "/v1/tasks/parcel_late/predict", json={"rows": [row()]}))
                for _ in range(8)
            ]
            while sum(each.done() for each in asked) < 5:
                await asyncio.sleep(0.01)
            go.set()
            return list(await asyncio.gather(*asked))

        answers = asyncio.run(asyncio.wait_for(crowd(), 30))
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [503] * 5
        assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"1"}
        assert served.balance().answered == 3

    def test_a_large_request_is_computed_beside_the_loop(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve()
        told = served.ask(*[row(courier_id=i % 29 + 1) for i in range(200)]).json()["predictions"]
        assert len(told) == 200
        assert told[0] == told[29] != told[1]
        assert [each["position"] for each in served.logged()] == sorted(range(200))

    def test_a_dead_thread_is_told_to_ray(self, serve: Serve, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve()
        served.replica.check()
        served.service.writer.close()
        with pytest.raises(DeadThread, match="log of parcel_late"):
            served.replica.check()


class TestWrongProjects:
    def test_a_project_without_tasks(self, tmp_path: Path, couriers: Any) -> None:
        with pytest.raises(NothingToServe, match="No task file"):
            Replica(tmp_path, tmp_path, [], VirtualClock(NOW), "system")

    def test_a_task_that_is_not_there(self, couriers: Any) -> None:
        with pytest.raises(TaskError, match="'parcel_lat' not found"):
            Replica(couriers.root, couriers.data, ["parcel_lat"], VirtualClock(NOW), "system")

    @pytest.mark.parametrize(
        ("before", "after", "told"),
        [
            ('"weight", ', "", "reads 'weight', which spine.request_fields does not name"),
            ('keys = ["depot_id", "courier_id"]', 'keys = ["depot_id"]', "reads 'courier_id', which spine.keys"),
        ],
    )
    def test_a_task_that_does_not_carry_what_the_features_read(
        self, couriers: Any, before: str, after: str, told: str
    ) -> None:
        file = couriers.root / "tasks" / "parcel_late.toml"
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))
        with pytest.raises(SchemaError, match=told):
            Replica(couriers.root, couriers.data, [], VirtualClock(NOW), "system")

    def test_a_key_that_nothing_can_vouch_for(self, couriers: Any) -> None:
        file = couriers.root / "tasks" / "parcel_late.toml"
        text = file.read_text().replace('"courier_id"]\nrequest', '"courier_id", "street"]\nrequest')
        file.write_text(text.replace('refuse_unknown = ["depot_id"]', 'refuse_unknown = ["street"]'))
        with pytest.raises(SchemaError, match="'street', but no view"):
            Replica(couriers.root, couriers.data, [], VirtualClock(NOW), "system")

    def test_a_key_that_no_view_reads_is_taken_as_it_comes(self, serve: Serve, couriers: Any) -> None:
        file = couriers.root / "tasks" / "parcel_late.toml"
        file.write_text(file.read_text().replace('"courier_id"]\nrequest', '"courier_id", "street"]\nrequest'))
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve()
        assert [served.ask(row(street=each)).status_code for each in ("x", 5, 1.5, True, None)] == [200] * 5
        assert served.ask(row(street=[1])).json()["error"]["expected"] == "a string, a number or a boolean or null"


def test_time_goes_on_while_serving(serve: Serve, couriers: Any) -> None:
    couriers.deploy(1, (1, couriers.bundle("one")))
    served = serve()
    served.ask(row())
    served.clock.advance(timedelta(hours=4))
    served.ask(row())
    now, later = served.logged()
    assert (now["feature.temperature"], later["feature.temperature"]) == (21.5, None)
    assert 'skewless_values_withheld_total{reason="expired",task="parcel_late",view="weather"} 1.0' in metrics(served)
