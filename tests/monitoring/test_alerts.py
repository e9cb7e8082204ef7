from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Engine

from monitoring.alerts import (
    InvalidNote,
    UnknownAlert,
    UnknownReview,
    acknowledge,
    finish_review,
    list_alerts,
    list_reviews,
    open_alert,
    open_review,
    read_events,
    resolve,
)
from tests.monitoring.conftest import DAY, START


@pytest.fixture
def engine(state_engine: Engine) -> Engine:
    return state_engine


def raise_drift(engine: Engine, *, task: str = "churn", kind: str = "drift", seen: int = 1) -> int | None:
    with engine.begin() as connection:
        return open_alert(connection, task=task, kind=kind, message="What.", evidence={"seen": seen}, now=START)


def test_an_open_alert_is_not_doubled(engine: Engine) -> None:
    first = raise_drift(engine)
    assert first is not None
    assert raise_drift(engine, seen=2) is None
    acknowledge(engine, first, note="looking", now=START + DAY)
    assert raise_drift(engine, seen=2) is None
    assert raise_drift(engine, kind="skew") is not None
    assert raise_drift(engine, task="other") is not None
    assert len(list_alerts(engine)) == 3
    assert [alert["kind"] for alert in list_alerts(engine, "churn")] == ["drift", "skew"]


def test_of_several_who_raise_it_at_once_one_does(engine: Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        for kind in ("drift", "skew", "decay"):
            word = Barrier(4)

            def at_once(kind: str = kind, word: Barrier = word) -> int | None:
                word.wait()
                return raise_drift(engine, kind=kind)

            raised = [each.result() for each in [pool.submit(at_once) for _ in range(4)]]
            assert sum(number is not None for number in raised) == 1
    assert len(list_alerts(engine)) == 3


def test_a_resolved_alert_comes_back_only_on_new_evidence(engine: Engine) -> None:
    first = raise_drift(engine)
    assert first is not None
    resolve(engine, first, now=START + DAY)
    assert list_alerts(engine) == []
    assert raise_drift(engine) is None
    assert raise_drift(engine, seen=2) is not None
    assert len(list_alerts(engine, open_only=False)) == 2


def test_the_first_acknowledgement_stands(engine: Engine) -> None:
    number = raise_drift(engine)
    assert number is not None
    acknowledge(engine, number, note="  a new price list  ", now=START + DAY)
    acknowledge(engine, number, note="something else", now=START + 2 * DAY)
    resolve(engine, number, now=START + 3 * DAY)
    resolve(engine, number, now=START + 4 * DAY)
    (alert,) = list_alerts(engine, open_only=False)
    assert (alert["note"], alert["acknowledged_at"]) == ("a new price list", START + DAY)
    assert (alert["opened_at"], alert["resolved_at"]) == (START, START + 3 * DAY)


def test_an_acknowledgement_says_something_about_an_alert_there_is(engine: Engine) -> None:
    number = raise_drift(engine)
    assert number is not None
    with pytest.raises(InvalidNote, match=f"Alert {number} needs a note"):
        acknowledge(engine, number, note=" \n", now=START)
    with pytest.raises(UnknownAlert, match=rf"no alert 99[\s\S]*open alerts: {number}\."):
        acknowledge(engine, 99, note="?", now=START)
    resolve(engine, number, now=START)
    with pytest.raises(UnknownAlert, match=r"open alerts: none\."):
        resolve(engine, 99, now=START)


def test_the_life_of_an_alert_is_on_record(engine: Engine) -> None:
    number = raise_drift(engine)
    assert number is not None
    acknowledge(engine, number, note="looking", now=START + DAY, by="ann")
    acknowledge(engine, number, note="me too", now=START + DAY, by="bob")
    resolve(engine, number, now=START + 2 * DAY, note="a new price list", by="ann")
    found = [(event["what"], event["by"], event["note"]) for event in read_events(engine, number)]
    assert found == [
        ("opened", "monitor", ""),
        ("acknowledged", "ann", "looking"),
        ("resolved", "ann", "a new price list"),
    ]


def test_a_review_is_done_with_a_note_or_with_its_alert(engine: Engine) -> None:
    number = raise_drift(engine)
    assert number is not None
    with engine.begin() as connection:
        first = open_review(connection, alert=number, due=START + 5 * DAY, now=START)
        open_review(connection, alert=number, due=START + 3 * DAY, now=START)
    assert [review["due_at"] for review in list_reviews(engine)] == [START + 3 * DAY, START + 5 * DAY]
    with pytest.raises(InvalidNote):
        finish_review(engine, first, note=" ", now=START)
    finish_review(engine, first, note="holds", now=START + DAY)
    with pytest.raises(UnknownReview, match=r"open reviews: 2\."):
        finish_review(engine, first, note="again", now=START + DAY)
    resolve(engine, number, now=START + 2 * DAY)
    assert list_reviews(engine) == []
    assert [review["note"] for review in list_reviews(engine, open_only=False)] == [
        "its alert was resolved by operator",
        "holds",
    ]
