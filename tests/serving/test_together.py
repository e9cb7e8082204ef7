"""Requests that come together: answered and logged as if each had come alone, and none pays for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from serving import together

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


REQUESTS = [
    [row(courier_id=courier, depot_id=depot, weight=weight) for courier in couriers]
    for couriers, depot, weight in [
        ([7], "north", 1.5),
        ([1, 2, None, 7], "south", None),
        ([7], "old", -4.0),
        ([29, 28], "north", 0.25),
        ([12], "south", 9.0),
    ]
]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the groups computed, as they come."""
    seen: list[int] = []
    through = together.Together._computed

    def computed(self: Any, group: Any) -> Any:
        seen.append(len(group))
        return through(self, group)

    monkeypatch.setattr(together.Together, "_computed", computed)
    return seen


def together_at(served: Any, requests: list[list[dict[str, Any]]]) -> list[Any]:
    async def ask() -> list[Any]:
        sent = [served.send("POST", PREDICT, json={"rows": rows, "request_id": f"r{i}"}) for i, rows in requests]
        return await asyncio.gather(*sent)

    return asyncio.run(ask())


def vectors(served: Any, name: str) -> list[dict[str, str]]:
    left_out = ("request_id", "latency_ms")
    return [
        {key: repr(value) for key, value in each.items() if key not in left_out}
        for each in served.logged("champion", "canary")
        if each["request_id"] == name
    ]


def test_each_is_answered_and_logged_as_if_it_had_come_alone(
    serve: Callable[..., Any], couriers: Any, groups: list[int]
) -> None:
    couriers.deploy(1, (1, couriers.bundle("one")), (2, couriers.bundle("two", weight=-0.4)), "canary", 0.5)
    served = serve()
    alone = [served.ask(*rows, request_id=f"alone{i}").json() for i, rows in enumerate(REQUESTS)]
    assert groups == []
    answers = [answer.json() for answer in together_at(served, list(enumerate(REQUESTS)))]
    assert max(groups) >= 4
    for i, (mine, its) in enumerate(zip(alone, answers, strict=True)):
        assert its["predictions"] == mine["predictions"]
        assert vectors(served, f"r{i}") == vectors(served, f"alone{i}")
    assert {each["version"] for answer in alone for each in answer["predictions"]} == {1, 2}
    assert served.balance().balanced


def test_one_with_a_wrong_key_is_refused_and_the_others_are_answered(
    serve: Callable[..., Any], couriers: Any, groups: list[int]
) -> None:
    couriers.deploy(1, (1, couriers.bundle("one")))
    served = serve()
    answers = together_at(served, [*enumerate(REQUESTS), (9, [row(depot_id="mars")])])
    assert [answer.status_code for answer in answers] == [200] * 5 + [422]
    assert max(groups) >= 4


def test_one_whose_transformation_fails_fails_alone(
    serve: Callable[..., Any], couriers: Any, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    couriers.redefine("heat.append(None", "assert w != 66.0; heat.append(None")
    couriers.deploy(1, (1, couriers.bundle("one")))
    served = serve()
    answers = together_at(served, [*enumerate(REQUESTS), (9, [row(weight=66.0)])])
    assert [answer.status_code for answer in answers] == [200] * 5 + [500]
    assert max(groups) >= 4
    assert len(served.logged()) == sum(map(len, REQUESTS))


def test_a_crowd_is_taken_in_groups_of_bounded_size(
    serve: Callable[..., Any], couriers: Any, groups: list[int]
) -> None:
    couriers.deploy(1, (1, couriers.bundle("one")))
    served = serve()
    crowd = [(i, [row(courier_id=1 + (i + j) % 29) for j in range(20)]) for i in range(12)]
    answers = together_at(served, crowd)
    assert {answer.status_code for answer in answers} == {200}
    assert max(groups) * 20 <= together._MOST_ROWS + 20
    assert served.balance().logged == 240
