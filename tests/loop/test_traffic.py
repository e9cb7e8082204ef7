import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import orjson
import polars as pl
import pytest

from contracts.task import load_task
from loop.traffic import Account, Caller, request_rows


@pytest.fixture
def task(stranger):
    return load_task(stranger / "tasks" / "late_delivery.toml")


@pytest.fixture
def endpoint():
    """Answers each request with the next of `answers`: (status, body)."""

    class Handler(BaseHTTPRequestHandler):
        answers: ClassVar[list] = []
        asked: ClassVar[list] = []

        def do_POST(self):
            self.asked.append(orjson.loads(self.rfile.read(int(self.headers["content-length"]))))
            status, body = self.answers.pop(0)
            data = orjson.dumps(body)
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    Handler.answers, Handler.asked = [], []
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_request_carries_what_an_application_knows_and_never_the_outcome(task, stranger):
    spine = pl.read_parquet(stranger / "data" / "events" / "orders.parquet").head(3).to_arrow()
    rows = request_rows(task, spine)
    assert [set(row) for row in rows] == [{"order_id", "courier_id", "km", "ordered_at"}] * 3
    assert rows[0]["ordered_at"].endswith("+00:00")


def test_the_account_tells_answers_refusals_and_failures_apart(task, endpoint):
    handler, url = endpoint
    answer = {"score": 0.2, "decision": 0, "variant": "champion", "version": 1}
    handler.answers = [
        (200, {"predictions": [answer, answer | {"variant": "canary"}]}),
        (422, {"error": {"message": "unknown courier"}}),
        (503, {"error": {"message": "overloaded"}}),
    ]
    caller = Caller(url, task, Account())
    assert len(caller.ask([{"km": 1.0}, {"km": 2.0}])) == 2
    assert caller.ask([{"km": 1.0}]) == []
    assert caller.ask([{"km": 1.0}]) == []
    account = caller.account
    assert handler.asked[0] == {"rows": [{"km": 1.0}, {"km": 2.0}]}
    assert (account.requests, account.answered_rows, account.failed) == (3, 2, 1)
    assert account.refusals == {"unknown courier": 1, "overloaded": 1}
    assert account.variants == {"champion": 1, "canary": 1}
    assert account.latency_ms(0.5) > 0
    caller.close()


def test_a_server_that_is_gone_counts_as_a_failure(task):
    caller = Caller("http://127.0.0.1:9", task)
    assert caller.ask([{}]) == []
    assert caller.account.failed == 1
    assert caller.account.latency_ms(0.5) is None
