"""Tokens: who may ask for what, how often, and that changing them needs no restart; the door stays shut by default."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving import v2_messages
from serving.access import Access, AccessError, AccessSettings, Refused, is_loopback, need_tokens
from serving.access_gate import Gate, kind_of
from serving.v2_grpc import V2Grpc

READER, WRITER, ADMIN = "reader-0123456789", "writer-0123456789", "admin-0123456789x"


class Hands:
    """A clock that is moved by hand."""

    at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "prediction").write_text(f"# who asks\nreader {READER}\n\nwriter {WRITER} 2\n")
    (tmp_path / "admin").write_text(f"boss {ADMIN}\n")
    return {
        "SKEWLESS_PREDICTION_TOKEN_FILE": str(tmp_path / "prediction"),
        "SKEWLESS_ADMIN_TOKEN_FILE": str(tmp_path / "admin"),
    }


def access(environment: dict[str, str], clock: Any = None) -> Access:
    return Access(AccessSettings.of(environment), clock or Hands())


def refused(gate: Access, kind: Any, header: str | None) -> tuple[int, str]:
    with pytest.raises(Refused) as told:
        gate.check(kind, header)
    return told.value.status, told.value.reason


def test_each_kind_has_tokens_of_its_own(files: dict[str, str]) -> None:
    gate = access(files)
    assert gate.check("prediction", f"Bearer {READER}") == "reader"
    assert gate.check("administration", f"bearer  {ADMIN} ") == "boss"
    assert refused(gate, "prediction", f"Bearer {ADMIN}") == (403, "forbidden")
    assert refused(gate, "administration", f"Bearer {READER}") == (403, "forbidden")
    for header in (None, "", "Bearer", "Bearer ", READER, f"Basic {READER}", f"Bearer {READER}x", "Bearer ünknown"):
        assert refused(gate, "prediction", header) == (401, "unauthenticated")
    assert gate.refused == {
        ("prediction", "forbidden"): 1,
        ("administration", "forbidden"): 1,
        ("prediction", "unauthenticated"): 8,
    }


def test_without_tokens_everything_is_open_and_with_some_administration_never_is(files: dict[str, str]) -> None:
    assert access({}).open
    assert access({}).check("administration", None) == ""
    prediction = access({"SKEWLESS_PREDICTION_TOKEN": READER})
    assert prediction.check("prediction", f"Bearer {READER}") == "environment"
    assert refused(prediction, "administration", None)[0] == 401
    assert refused(prediction, "administration", f"Bearer {READER}")[0] == 403
    administration = access({"SKEWLESS_ADMIN_TOKEN": ADMIN})
    assert administration.check("prediction", None) == ""


def test_a_token_asks_no_more_often_than_it_may(files: dict[str, str]) -> None:
    clock = Hands()
    gate = access(files | {"SKEWLESS_RATE_LIMIT": "1000"}, clock)
    for _ in range(2):
        gate.check("prediction", f"Bearer {WRITER}")
    with pytest.raises(Refused, match="'writer' asks more than 2 times a second") as told:
        gate.check("prediction", f"Bearer {WRITER}")
    assert (told.value.status, told.value.retry_seconds) == (429, 1)
    for _ in range(1000):
        gate.check("prediction", f"Bearer {READER}")  # another token's allowance
    assert refused(gate, "prediction", f"Bearer {READER}") == (429, "rate")
    clock.at += 0.5
    gate.check("prediction", f"Bearer {WRITER}")


def test_a_file_that_changes_is_read_again_and_one_that_breaks_is_not(files: dict[str, str]) -> None:
    clock = Hands()
    gate = access(files, clock)
    path = Path(files["SKEWLESS_PREDICTION_TOKEN_FILE"])

    def write(text: str) -> None:
        path.write_text(text)
        clock.at += 2

    write("successor fresh-token-0123456789\n")
    assert refused(gate, "prediction", f"Bearer {READER}") == (401, "unauthenticated")
    assert gate.check("prediction", "Bearer fresh-token-0123456789") == "successor"
    write("one two three four\n")
    assert gate.check("prediction", "Bearer fresh-token-0123456789") == "successor"
    path.unlink()
    clock.at += 2
    assert gate.check("prediction", "Bearer fresh-token-0123456789") == "successor"
    write("")
    assert refused(gate, "prediction", "Bearer fresh-token-0123456789") == (401, "unauthenticated")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a short\n", "has 5 characters; it must have 16 or more"),
        (f"{READER}\n", "line 1 has 1 words"),
        (f"a {READER} often\n", "'often' is no rate"),
        (f"a {READER} -1\n", "'-1' is no rate"),
    ],
)
def test_a_file_that_makes_no_sense_is_met_at_start(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(AccessError, match=told) as error:
        access({"SKEWLESS_PREDICTION_TOKEN_FILE": str(path)})
    assert READER not in str(error.value) or "words" in told
    with pytest.raises(AccessError, match="cannot be read"):
        access({"SKEWLESS_PREDICTION_TOKEN_FILE": str(tmp_path / "gone")})
    with pytest.raises(AccessError, match="SKEWLESS_RATE_LIMIT"):
        access({"SKEWLESS_RATE_LIMIT": "0"})


def test_nobody_else_is_let_near_without_a_token() -> None:
    nobody, somebody = access({}), access({"SKEWLESS_PREDICTION_TOKEN": READER})
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert is_loopback(host)
        need_tokens(host, nobody)
    for host in ("0.0.0.0", "::", "10.0.0.7", "example.org"):
        need_tokens(host, somebody)
        with pytest.raises(AccessError, match=f"listen on {host}"):
            need_tokens(host, nobody)


def test_serving_elsewhere_without_tokens_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.start import start

    monkeypatch.delenv("SKEWLESS_PREDICTION_TOKEN", raising=False)
    with pytest.raises(AccessError, match=r"listen on 0\.0\.0\.0") as told:
        start(tmp_path, tmp_path / "data", host="0.0.0.0", port=1, clock="system")
    assert "SKEWLESS_PREDICTION_TOKEN_FILE" in told.value.hint


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/healthz", None),
        ("/readyz", None),
        ("/v2/health/ready", None),
        ("/v1/tasks/a/predict", "prediction"),
        ("/v2/models/a/infer", "prediction"),
        ("/metrics", "prediction"),
        ("/healthz/", "prediction"),
        ("/admin", "administration"),
        ("/admin/rollout/a", "administration"),
        ("/console/", "administration"),
        ("/administrator", "prediction"),
    ],
)
def test_a_path_says_what_it_needs(path: str, kind: str | None) -> None:
    assert kind_of(path) == kind


class TestAReplicaWithTokens:
    @pytest.fixture(scope="class")
    def guarded(self, make_served: Any) -> Any:
        return make_served({"SKEWLESS_PREDICTION_TOKEN": READER, "SKEWLESS_ADMIN_TOKEN": ADMIN})

    def test_it_asks_for_them_over_http(self, guarded: Any) -> None:
        assert isinstance(guarded.replica.asgi, Gate)
        assert guarded.request("GET", "/healthz").status_code == 200
        assert guarded.request("GET", "/readyz").status_code == 200
        secret = {"rows": [{"depot_id": "a secret place"}]}
        path = "/v1/tasks/parcel_late/predict"
        answer = guarded.request("POST", path, json=secret, headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["message"] == "A bearer token for prediction is needed."
        known = {"authorization": f"Bearer {READER}"}
        assert guarded.request("POST", path, json=secret, headers=known).status_code == 422
        assert guarded.request("GET", "/admin/x", headers=known).status_code == 403
        assert guarded.request("GET", "/admin/x", headers={"authorization": f"Bearer {ADMIN}"}).status_code == 404
        metrics = guarded.request("GET", "/metrics", headers=known).text
        assert 'skewless_refused_total{kind="prediction",reason="unauthenticated"} 1.0' in metrics
        assert 'skewless_refused_total{kind="administration",reason="forbidden"} 1.0' in metrics
        log = guarded.couriers.data / "logs" / "replica-1.jsonl"
        told = next(line for line in map(json.loads, log.read_text().splitlines()) if line.get("request_id") == "mine")
        assert (told["status"], told["reason"], told["method"], told["path"]) == (401, "unauthenticated", "POST", path)
        for hidden in ("a secret place", READER, ADMIN):
            assert hidden not in log.read_text()

    def test_it_asks_for_them_over_grpc(self, guarded: Any) -> None:
        async def call(name: str, *metadata: tuple[str, str]) -> Any:
            server = V2Grpc(guarded.replica.asgi._inner._front, "127.0.0.1:0", guarded.replica.access)
            await server.start()
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                    ask = channel.unary_unary(
                        f"/{v2_messages.SERVICE}/{name}",
                        request_serializer=lambda request: request.SerializeToString(),
                        response_deserializer=v2_messages.message(f"{name}Response").FromString,
                    )
                    return await ask(v2_messages.message(f"{name}Request")(), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code()
            finally:
                await server.stop()

        assert asyncio.run(call("ServerLive")).live
        assert asyncio.run(call("ServerMetadata")) is grpc.StatusCode.UNAUTHENTICATED
        known = ("authorization", f"Bearer {READER}")
        assert asyncio.run(call("ServerMetadata", known)).name
        other = ("authorization", f"Bearer {ADMIN}")
        assert asyncio.run(call("ModelInfer", other)) is grpc.StatusCode.PERMISSION_DENIED
        assert asyncio.run(call("ModelInfer", known)) is grpc.StatusCode.NOT_FOUND
