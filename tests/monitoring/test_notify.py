"""Alerts reach people: over real HTTP, again after failures, once; and the log in any case."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import Engine

from monitoring.alerts import read_events, resolve
from monitoring.notify import Webhook, tell
from tests.monitoring.conftest import DAY, START
from tests.monitoring.test_alerts import raise_drift


class Receiver:
    """A web server that answers with each of `statuses` in turn, then with 204."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.received: list[tuple[str | None, dict[str, object]]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((self.headers["Idempotency-Key"], json.loads(body)))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/alerts"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def engine(state_engine: Engine) -> Engine:
    return state_engine


def test_a_webhook_that_fails_twice_hears_of_the_alert_all_the_same(engine: Engine, receiver: Receiver) -> None:
    number = raise_drift(engine)
    receiver.statuses = [500, 503]
    pauses: list[float] = []
    hook = Webhook(receiver.url, sleep=pauses.append)
    assert tell(engine, "churn", now=START + DAY, webhook=hook) == [number]
    assert pauses == [0.5, 1.0]
    assert [key for key, _ in receiver.received] == [f"churn-{number}"] * 3
    body = receiver.received[-1][1]
    assert (body["task"], body["kind"], body["evidence"]) == ("churn", "drift", {"seen": 1})
    assert body["opened_at"] == START.isoformat()
    assert tell(engine, "churn", now=START + 2 * DAY, webhook=hook) == []
    assert len(receiver.received) == 3


def test_what_could_not_be_told_is_on_record_and_told_by_the_next_run(engine: Engine, receiver: Receiver) -> None:
    number = raise_drift(engine)
    assert number is not None
    receiver.statuses = [500] * 4
    assert tell(engine, "churn", now=START, webhook=Webhook(receiver.url, sleep=lambda _: None)) == []
    assert tell(engine, "churn", now=START + DAY, webhook=Webhook(receiver.url)) == [number]
    found = [(event["what"], event["note"]) for event in read_events(engine, number)]
    assert found == [("opened", ""), ("not_notified", "webhook: HTTP 500"), ("notified", "webhook")]


def test_an_answer_that_will_not_change_is_not_asked_for_again(engine: Engine, receiver: Receiver) -> None:
    raise_drift(engine)
    receiver.statuses = [400]
    assert tell(engine, "churn", now=START, webhook=Webhook(receiver.url)) == []
    assert len(receiver.received) == 1


def test_nobody_listening_is_no_traceback(engine: Engine, receiver: Receiver) -> None:
    raise_drift(engine)
    receiver.server.shutdown()
    receiver.server.server_close()
    for url in (receiver.url, "no url at all", "http://"):
        hook = Webhook(url, attempts=2, sleep=lambda _: None)
        assert tell(engine, "churn", now=START, webhook=hook) == []


def test_without_a_webhook_a_line_of_the_log_tells_once(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    number = raise_drift(engine)
    with caplog.at_level(logging.WARNING, logger="skewless.alerts"):
        assert tell(engine, "churn", now=START) == [number]
        assert tell(engine, "churn", now=START) == []
    assert [record.getMessage() for record in caplog.records] == [f"alert {number} of churn, drift: What."]


def test_a_resolved_alert_is_not_told(engine: Engine) -> None:
    number = raise_drift(engine)
    assert number is not None
    resolve(engine, number, now=START)
    assert tell(engine, "churn", now=START) == []
