"""The client against a server that answers as it is told to: over real sockets, with real waits."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography import x509

from skewless_client import (
    Answer,
    AsyncClient,
    Client,
    ClientError,
    Prediction,
    Refused,
    Retries,
    ServerFailed,
    TimedOut,
    Unavailable,
)
from skewless_client.retries import retry_after
from tests.certificates import self_signed

QUICK = Retries(attempts=4, first=0.001, most=0.002)
BUSY = {"error": {"field": "", "value": None, "expected": "", "message": "Too much is under way."}}


def good(request: dict[str, Any]) -> dict[str, Any]:
    """What a server answers to a request, as JSON."""
    rows = [
        {"parcel": row.get("parcel"), "score": 0.25, "decision": 0, "variant": "champion", "version": 3}
        for row in request["rows"]
    ]
    return {"request_id": request["request_id"], "task": "parcel_late", "predictions": rows, "degraded": []}


class Scripted:
    """A server; each request takes the next step of the script, and the last step stays."""

    def __init__(self) -> None:
        self.script: list[Any] = [good]
        self.requests: list[dict[str, Any]] = []
        self.heads: list[dict[str, str]] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                scripted.requests.append(request)
                scripted.heads.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
                step = scripted.script.pop(0) if len(scripted.script) > 1 else scripted.script[0]
                if step == "hang up":
                    self.close_connection = True
                    self.connection.close()
                elif isinstance(step, float):
                    time.sleep(step)
                    self.close_connection = True
                elif callable(step):
                    self.reply(200, step(request))
                else:
                    self.reply(*step)

            def do_GET(self) -> None:
                self.reply(*scripted.script[0])

            def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.close()


def waiting(url: str, **options: Any) -> Callable[..., Answer]:
    def predict(*args: Any, **named: Any) -> Answer:
        with Client(url, transport=httpx.HTTPTransport(verify=False), **options) as client:
            return client.predict(*args, **named)

    return predict


def on_a_loop(url: str, **options: Any) -> Callable[..., Answer]:
    def predict(*args: Any, **named: Any) -> Answer:
        async def ask() -> Answer:
            async with AsyncClient(url, transport=httpx.AsyncHTTPTransport(verify=False), **options) as client:
                return await client.predict(*args, **named)

        return asyncio.run(ask())

    return predict


@pytest.fixture(params=[waiting, on_a_loop])
def asking(request: pytest.FixtureRequest) -> Any:
    """Makes a `predict` of either client, by url and options."""
    return request.param


def test_an_answer_is_typed(asking: Any, scripted: Scripted) -> None:
    answer = asking(scripted.url)("parcel_late", [{"parcel": "p1", "weight": 2.5}, {"weight": None}])
    assert answer == Answer(
        request_id=answer.request_id,
        task="parcel_late",
        predictions=(
            Prediction(case_id="p1", version=3, variant="champion", score=0.25, decision=0),
            Prediction(case_id=None, version=3, variant="champion", score=0.25, decision=0),
        ),
        degraded=(),
    )
    assert not answer.repeated
    assert scripted.requests[0]["rows"] == [{"parcel": "p1", "weight": 2.5}, {"weight": None}]
    assert scripted.heads[0]["path"] == "/v1/tasks/parcel_late/predict"
    assert "authorization" not in scripted.heads[0]


def test_a_regression_has_value_and_quantiles(asking: Any, scripted: Scripted) -> None:
    row = {"flight": "f", "value": 4.5, "quantiles": {"0.9": 9.0}, "variant": "canary", "version": 2}
    content = {"request_id": "r", "task": "t", "predictions": [row], "degraded": ["repeated", "rows[0]: fallback: old"]}
    scripted.script = [(200, content)]
    answer = asking(scripted.url)("t", [{}], request_id="r")
    assert answer.predictions == (
        Prediction(case_id="f", version=2, variant="canary", value=4.5, quantiles={"0.9": 9.0}),
    )
    assert answer.repeated
    assert answer.degraded == ("repeated", "rows[0]: fallback: old")


def test_values_are_written_as_the_server_reads_them(asking: Any, scripted: Scripted) -> None:
    instant = datetime(2024, 3, 5, 12, tzinfo=UTC)
    asking(scripted.url, token="s3cret")("odd/name", [{"at": instant, "n": np.int64(3), "x": np.float32(0.5)}])
    assert scripted.requests[0]["rows"] == [{"at": "2024-03-05T12:00:00+00:00", "n": 3, "x": 0.5}]
    assert scripted.heads[0]["path"] == "/v1/tasks/odd%2Fname/predict"
    assert scripted.heads[0]["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("value", [float("nan"), datetime(2024, 3, 5), {1, 2}])  # noqa: DTZ001  what is refused
def test_what_a_request_cannot_hold_is_refused_before_it_is_sent(asking: Any, scripted: Scripted, value: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON compliant|no time zone|is a set"):
        asking(scripted.url)("t", [{"x": value}])
    assert scripted.requests == []


@pytest.mark.parametrize("step", [(503, BUSY, {"retry-after": "0"}), (429, BUSY), (502, b"<html>"), "hang up"])
def test_not_now_is_asked_again_under_the_same_id(asking: Any, scripted: Scripted, step: Any) -> None:
    scripted.script = [step, step, good]
    answer = asking(scripted.url, retries=QUICK)("parcel_late", [{"parcel": "p"}])
    assert [each["request_id"] for each in scripted.requests] == [answer.request_id] * 3
    other = asking(scripted.url)("parcel_late", [{}])
    assert other.request_id != answer.request_id
    assert asking(scripted.url)("parcel_late", [{}], request_id="mine").request_id == "mine"


def test_a_server_that_stays_busy_is_given_up_on(asking: Any, scripted: Scripted) -> None:
    scripted.script = [(503, BUSY, {"retry-after": "0"})]
    with pytest.raises(Unavailable, match=r"Too much is under way\. \(after 4 attempts\)") as error:
        asking(scripted.url, retries=QUICK)("t", [{}], request_id="r")
    assert (error.value.attempts, error.value.retry_after, error.value.request_id) == (4, 0, "r")
    assert len(scripted.requests) == 4


def test_retry_after_is_waited_for(asking: Any, scripted: Scripted) -> None:
    scripted.script = [(503, BUSY, {"retry-after": "0.2"}), good]
    began = time.monotonic()
    asking(scripted.url, retries=QUICK)("t", [{}])
    assert time.monotonic() - began >= 0.2
    scripted.script = [(503, BUSY, {"retry-after": "60"})]
    with pytest.raises(Unavailable, match=r"after 1 attempt\)") as error:  # the wait would outlast the call
        asking(scripted.url, retries=QUICK)("t", [{}])
    assert error.value.retry_after == 60
    assert len(scripted.requests) == 3


def test_nobody_there_is_unavailable(asking: Any, scripted: Scripted) -> None:
    scripted.close()
    with pytest.raises(Unavailable, match="ConnectError") as error:
        asking(scripted.url, retries=QUICK)("t", [{}])
    assert error.value.attempts == 4
    with Client(scripted.url) as client:
        assert client.ready() is False


def test_a_certificate_that_nobody_vouches_for_is_said_at_once(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = self_signed(tmp_path, x509.DNSName("localhost"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # The handshake is left to the connection's own thread: one that breaks off must not end the server.
    scripted.server.socket = context.wrap_socket(
        scripted.server.socket, server_side=True, do_handshake_on_connect=False
    )
    port = scripted.server.server_port

    def refused(url: str) -> str:
        with Client(url, retries=QUICK) as client, pytest.raises(Unavailable, match="SSL_CERT_FILE") as error:
            client.predict("t", [{}])
        assert error.value.attempts == 1
        return str(error.value)

    assert "self-signed certificate" in refused(f"https://localhost:{port}")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert "not valid for '127.0.0.1'" in refused(f"https://127.0.0.1:{port}")
    assert scripted.requests == []
    with Client(f"https://localhost:{port}") as client:
        assert client.predict("t", [{"parcel": "p"}]).predictions[0].score == 0.25


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_refusal_names_the_field_and_is_not_repeated(asking: Any, scripted: Scripted, status: int) -> None:
    error = {"field": "rows[0].weight", "value": "x", "expected": "a number", "message": "rows[0].weight is 'x'."}
    scripted.script = [(status, {"error": error})]
    with pytest.raises(Refused, match=r"rows\[0\]\.weight is 'x'") as refused:
        asking(scripted.url, retries=QUICK)("t", [{"weight": "x"}])
    found = refused.value
    assert (found.status, found.field, found.value, found.expected) == (status, "rows[0].weight", "x", "a number")
    assert found.request_id == scripted.requests[0]["request_id"]
    assert len(scripted.requests) == 1


def test_a_failure_of_the_model_is_not_repeated(asking: Any, scripted: Scripted) -> None:
    scripted.script = [(500, {"error": "boom"})]
    with pytest.raises(ServerFailed, match="boom"):
        asking(scripted.url, retries=QUICK)("t", [{}])
    assert len(scripted.requests) == 1


def test_the_server_is_told_how_long_the_caller_waits(asking: Any, scripted: Scripted) -> None:
    scripted.script = [(503, BUSY, {"retry-after": "0.2"}), good]
    asking(scripted.url, retries=QUICK, timeout=30)("t", [{}])
    first, second = (int(each["x-request-deadline-ms"]) for each in scripted.heads)
    assert 0 < second <= first - 200 < 30_000


def test_time_is_bounded_retries_included(asking: Any, scripted: Scripted) -> None:
    scripted.script = [1.0]
    with pytest.raises(TimedOut, match=r"No answer within 0\.2 s") as error:
        asking(scripted.url)("t", [{}], timeout=0.2, request_id="slow")
    assert error.value.request_id == "slow"
    scripted.script = [(503, {"error": "not now"})]
    with pytest.raises((Unavailable, TimedOut)):  # seen while it waits for its next attempt, or during one
        asking(scripted.url, timeout=0.1, retries=Retries(attempts=10**6, first=0.02, most=0.02))("t", [{}])


def test_every_error_is_a_client_error_and_what_python_calls_it() -> None:
    assert issubclass(Refused, ValueError)
    assert issubclass(Unavailable, ConnectionError)
    assert issubclass(TimedOut, TimeoutError)
    assert issubclass(ServerFailed, RuntimeError)
    assert all(issubclass(each, ClientError) for each in (Refused, Unavailable, TimedOut, ServerFailed))


def test_waits_grow_spread_and_end() -> None:
    retries = Retries(attempts=8, first=1.0, most=5.0)
    seen = [[retries.wait(attempt, None) for _ in range(200)] for attempt in range(1, 8)]
    for waits, most in zip(seen, [1, 2, 4, 5, 5, 5, 5], strict=True):
        assert 0 <= min(waits) < max(waits) <= most
        assert max(waits) > most / 2
    assert retries.wait(8, None) is None
    assert 7 <= retries.wait(1, 7.0) <= 8
    for wrong in ({"attempts": 0}, {"first": -1.0}, {"first": 3.0, "most": 2.0}):
        with pytest.raises(ValueError, match="must be"):
            Retries(**wrong)


def test_retry_after_is_read_as_number_and_as_date() -> None:
    now = datetime(2024, 3, 5, 10, tzinfo=UTC)
    assert retry_after("1.5") == 1.5
    assert retry_after("-3") == 0
    assert retry_after(format_datetime(now + timedelta(seconds=30), usegmt=True), now) == 30
    assert retry_after(format_datetime(now - timedelta(seconds=30), usegmt=True), now) == 0
    for text in (None, "soon", "inf", "nan"):
        assert retry_after(text) is None


def test_ready_is_what_the_server_says(scripted: Scripted) -> None:
    async def ready() -> bool:
        async with AsyncClient(scripted.url) as client:
            return await client.ready()

    for status in (200, 503):
        scripted.script = [(status, {})]
        with Client(scripted.url) as client:
            assert client.ready() is (status == 200)
        assert asyncio.run(ready()) is (status == 200)


def test_importing_it_brings_nothing_of_the_house() -> None:
    code = (
        "import sys, skewless_client; heavy = {'numpy', 'pandas', 'ray', 'feast', 'serving', 'contracts', 'asof'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
