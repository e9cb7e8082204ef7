"""What a replica lets one see: metrics, logs, traces; and that dashboard and alert rules ask for what there is."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from serving.logs import stop_writing, write_to
from serving.tracing import TracingError, tracing_of

DEPLOY = Path(__file__).parents[2] / "deploy"
PREDICT = "/v1/tasks/parcel_late/predict"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_WORDS = frozenset(["sum", "rate", "increase", "max", "and", "histogram_quantile"])


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


def told(served: Any) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Sample name to labels to value."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(served.request("GET", "/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


class TestMetrics:
    def test_stages_make_up_the_request_and_views_have_ages(self, served: Any) -> None:
        before = told(served)
        assert served.ask(row()).status_code == 200
        after = told(served)

        def grown(name: str, **labels: str) -> float:
            at = tuple(sorted(({"task": "parcel_late"} | labels).items()))
            return after[name][at] - before.get(name, {}).get(at, 0.0)

        stages = ("parse", "queue", "features", "scoring", "log")
        assert [grown("skewless_stage_seconds_count", stage=stage) for stage in stages] == [1] * 5
        spent = sum(grown("skewless_stage_seconds_sum", stage=stage) for stage in stages)
        assert 0 < spent <= grown("skewless_request_seconds_sum")
        age = after["skewless_view_age_seconds"]
        at = (("quantile", "1"), ("task", "parcel_late"), ("view", "weather"))
        assert age[at] == 30 * 60  # asked at half past, of the hour's boundary
        share = after["skewless_variant_share"]
        assert share == {(("task", "parcel_late"), ("variant", "champion"), ("version", "1")): 1.0}
        assert after["skewless_in_flight"] == {(("task", "parcel_late"),): 0.0}
        deadline = time.monotonic() + 10  # the caller has its answer before the log has counted its rows as written
        while (lag := told(served)["skewless_log_lag_seconds"]) != {(("task", "parcel_late"),): 0.0}:
            assert time.monotonic() < deadline, lag
        assert after["skewless_store_breaker_state"] == {(("task", "parcel_late"),): 0.0}

    def test_a_canary_has_its_declared_share(self, serve: Any, couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")), (2, couriers.bundle("two")), "canary", 0.25)
        share = told(serve())["skewless_variant_share"]
        assert {dict(labels)["variant"]: each for labels, each in share.items()} == {"champion": 0.75, "canary": 0.25}


def names_in(expression: str) -> set[str]:
    """Metrics of a PromQL expression."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|on)\s*\([^)]*\)', " ", expression)
    return set(re.findall(r"[a-zA-Z_:][\w:]*", bare)) - _WORDS


def expressions() -> list[str]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    board = json.loads((DEPLOY / "grafana" / "skewless.json").read_text())
    found += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return found


class TestDashboardAndAlerts:
    def test_every_metric_they_ask_for_is_told(self, served: Any) -> None:
        text = served.request("GET", "/metrics").text
        known = set()
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
            known |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind == "histogram" else {name}
        asked = set().union(*map(names_in, expressions()))
        assert len(asked) > 20
        assert asked - known == set()

    def test_labels_they_group_by_are_there(self, served: Any) -> None:
        served.ask(row())
        labels = {label for values in told(served).values() for each in values for label, _ in each}
        labels |= {"reason", "kind", "code"}  # of what has not happened here
        for expression in expressions():
            for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
                assert {each.strip() for each in group.split(",")} <= labels, expression

    def test_the_rules_pass_promtool(self) -> None:
        promtool = shutil.which("promtool")
        if promtool is None:
            pytest.skip("promtool is not on PATH: apt-get install prometheus")
        command = [promtool, "check", "config", "prometheus.yml"]
        done = subprocess.run(command, cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_every_panel_has_its_place(self) -> None:
        board = json.loads((DEPLOY / "grafana" / "skewless.json").read_text())
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken
            assert at["x"] + at["w"] <= 24
            taken |= cells
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


class TestLogs:
    def test_a_request_that_fails_is_told_by_its_id_without_what_it_held(self, served: Any) -> None:
        headers = {"x-request-id": "trace-me"}
        answer = served.request("POST", PREDICT, json={"rows": [row(weight="a secret weight")]}, headers=headers)
        assert (answer.status_code, answer.headers["x-request-id"]) == (422, "trace-me")
        log = served.couriers.data / "logs" / "replica-1.jsonl"
        line = next(
            each for each in map(json.loads, log.read_text().splitlines()) if each.get("request_id") == "trace-me"
        )
        assert (line["message"], line["task"], line["status"]) == ("request not answered", "parcel_late", 422)
        assert line["why"] == "rows[0].weight: expected a finite number or null"
        assert (line["level"], line["path"], line["logger"]) == ("info", PREDICT, "serving.front")
        assert "a secret weight" not in log.read_text()

    def test_a_file_has_one_writer_and_the_next_goes_on_with_it(self, tmp_path: Path) -> None:
        first, second = write_to(tmp_path), write_to(tmp_path)
        logging.getLogger("serving.test").warning("one")
        stop_writing(first)
        third = write_to(tmp_path)
        logging.getLogger("serving.test").warning("two")
        for each in (second, third):
            stop_writing(each)
        said = {
            path.name: [json.loads(line)["message"] for line in path.read_text().splitlines()]
            for path in tmp_path.glob("*.jsonl")
        }
        assert said == {"replica-1.jsonl": ["one", "two"], "replica-2.jsonl": ["one", "two"]}
        assert {json.loads(line)["process"] for line in (tmp_path / "replica-1.jsonl").open()} == {os.getpid()}

    def test_every_answer_has_an_id(self, served: Any) -> None:
        made = [served.ask(row()).headers["x-request-id"] for _ in range(2)]
        assert len(set(made)) == 2
        strange = served.request("GET", "/healthz", headers={"x-request-id": "two words"})
        assert strange.headers["x-request-id"] not in ("two words", "")

    def test_what_a_thread_says_belongs_to_the_request_it_works_for(
        self, serve: Any, couriers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve()
        scorer = served.service.live.champion.scorer
        monkeypatch.setattr(type(scorer), "predict", lambda *_: 1 / 0)
        rows = [row(courier_id=i) for i in range(1, 40)]
        failed = served.request("POST", PREDICT, json={"rows": rows}, headers={"x-request-id": "mine"})
        assert failed.status_code == 500
        log = served.couriers.data / "logs" / "replica-1.jsonl"
        lines = list(map(json.loads, log.read_text().splitlines()))
        assert any(line.get("request_id") == "mine" and line["level"] == "error" for line in lines)


class Receiver:
    """An OpenTelemetry collector in miniature."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                    receiver.spans += [span for scope in each.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class TestTraces:
    @pytest.fixture
    def receiver(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
        made = Receiver()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", made.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none")
        yield made
        made.close()

    def test_a_request_is_a_span_of_its_callers_trace_with_one_a_stage(
        self, serve: Any, couriers: Any, receiver: Receiver
    ) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve(environment={"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": receiver.url})
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
        assert served.request("POST", PREDICT, json={"rows": [row()]}, headers=headers).status_code == 200
        assert served.request("POST", PREDICT, json={"rows": []}, headers=headers).status_code == 422
        served.replica._tracing._provider.force_flush()
        assert {span.trace_id.hex() for span in receiver.spans} == {TRACE}
        asked = [span for span in receiver.spans if span.name == "predict"]
        assert {span.parent_span_id.hex() for span in asked} == {PARENT}
        said = [{each.key: each.value for each in span.attributes} for span in asked]
        assert [each["http.response.status_code"].int_value for each in said] == [200, 422]
        assert said[0]["skewless.request_id"].string_value == "mine"
        stages = [span for span in receiver.spans if span.name != "predict"]
        assert [span.name for span in stages] == ["parse", "queue", "features", "scoring", "log"]
        assert {span.parent_span_id for span in stages} == {asked[0].span_id}
        for before, after in itertools.pairwise(stages):
            assert before.start_time_unix_nano <= before.end_time_unix_nano == after.start_time_unix_nano
        assert asked[0].start_time_unix_nano <= stages[0].start_time_unix_nano
        assert stages[-1].end_time_unix_nano <= asked[0].end_time_unix_nano

    def test_nothing_is_sent_unless_it_is_configured(self, served: Any) -> None:
        assert served.replica._tracing is None
        assert tracing_of({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}) is None
        with pytest.raises(TracingError, match="'carrier_pigeon'") as told:
            tracing_of({"OTEL_TRACES_EXPORTER": "carrier_pigeon"})
        assert "console" in told.value.hint
