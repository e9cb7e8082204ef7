"""The console: what it says of a task, what a person can do on it, what it refuses, and how a browser shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from contracts.clock import VirtualClock
from contracts.registry import ModelVersion, RegistryError
from monitoring import console_plots
from monitoring.alerts import list_alerts, open_alert
from monitoring.console import console
from monitoring.console_page import console_page
from monitoring.console_state import CHUNKS, Cell, Elsewhere, Move, Point, TaskState, read_task
from monitoring.decision import decide, record
from monitoring.decision_record import keep_decision
from monitoring.monitor import monitor
from monitoring.recompute import Recomputation
from monitoring.results import read_figures
from tests.browser import Browser, look
from tests.monitoring.conftest import DAY, FINGERPRINT, START, Cases, World, make_world

LATER = START + 30 * DAY
MESSAGE = "What: half of `spend` is <b>gone</b>. Why: nobody knows. Do: ask & wait."


def moves(_task: Any) -> list[Move]:
    checks = [{"name": "errors", "verdict": "pass", "reason": "0 of 500 requests failed"}]
    kept = {"at": START, "version": 1, "share": 0.0, "actor": "rollout", "checks": checks}
    return [Move(from_stage="canary", to_stage="champion", reason="every check passed", **kept)]


def versions(task: Any) -> list[ModelVersion]:
    known = {"task": task.name, "dataset_hash": "d", "model_hash": "m", "bundle": Path("bundle")}
    return [
        ModelVersion(version=number, run_id=f"{number}234567890", status=status, **known)
        for number, status in enumerate(("candidate", "rejected"), 1)
    ]


def card(_task: Any, version: int) -> str | None:
    return "<!doctype html><title>its card</title>" if version == 1 else None


ELSEWHERE = Elsewhere(moves, versions, card)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two days as ever, then two on which every input has moved; monitored, decided, on record."""
    world = make_world(tmp_path_factory.mktemp("watched") / "world")
    world.serve(1, challenger=2)
    world.log(Cases.make(START, 2, 150, seed=2))
    world.log(Cases.make(START + 2 * DAY, 2, 150, seed=3, shift=1.5))
    with pytest.MonkeyPatch.context() as patch:  # a fake store has no registry to hash
        patch.setattr(Recomputation, "fingerprint", property(lambda _: FINGERPRINT))
        report = monitor(
            world.task, world.locations, world.engine, as_of=LATER, bundle=world.bundle, version=1, store=world.store
        )
    decision = decide(world.task, report, last_training=LATER - 20 * DAY, now=LATER)
    record(world.engine, decision, LATER)
    keep_decision(world.engine, decision, LATER)
    return world


def ask(world: World, *, root_path: str = "", **how: Any) -> Browser:
    given = {"tasks": lambda: [world.task], "elsewhere": ELSEWHERE} | how
    tasks, elsewhere = given.pop("tasks"), given.pop("elsewhere")
    clock = VirtualClock(LATER)
    app = console("world", world.engine, tasks, elsewhere, clock=clock, hosts=("127.0.0.1",), **given)
    return Browser(app, root_path)


@pytest.fixture
def alerted(world: World) -> World:
    """A task that serves, with one alert."""
    world.serve(1)
    with world.engine.begin() as connection:
        open_alert(connection, task="churn", kind="drift", message=MESSAGE, evidence={}, now=START)
    return world


def words(page: str) -> str:
    """What is written on it, tags and spaces aside."""
    return re.sub(r"\s+", " ", re.sub(r"<(style|title)>.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL))


def token(page: str) -> str:
    found = re.search(r'name="token" value="([^"]+)"', page)
    assert found
    return found[1]


def test_it_says_what_serves_how_well_and_what_was_decided(watched: World) -> None:
    page = ask(watched).get("/").text
    said = words(page)
    assert "Champion v1" in said
    assert "Challenger v2" in said
    assert "All 1,800 values of 600 logged rows are what training would compute" in said
    assert "3 of 3 features drifted at least once in 4 chunks" in said
    assert "Version 1 became champion" in said
    assert "0 of 500 requests failed" in said
    assert "habits" in said
    figures = read_figures(watched.engine, "churn")
    assert {"estimated", "realized", "cost", "together"} <= {row["kind"] for row in figures}
    for row in figures:
        if row["kind"] in ("estimated", "realized", "together"):
            assert f"{row['value']:.4f}" in said
        if row["kind"] == "cost":
            assert f"{row['value']:.2f}" in said
    [alert] = list_alerts(watched.engine, "churn")
    assert f"blocked by alert {alert['id']}" in said
    assert "Raised an alert" in said
    state = read_task(watched.engine, watched.task, ELSEWHERE)
    assert [sum(cell.drifted for cell in cells) for cells in state.drift.values()] == [2, 2, 2]
    assert page.count(": drifted</title>") == 6
    together, tables = 4, 2  # a dot a chunk, and the heads of two tables
    assert page.count("usual up to") - page.count(": drifted</title>") == 6 + together + tables


def test_what_was_found_of_a_version_is_not_said_of_the_one_that_took_its_place(watched: World) -> None:
    state = replace(read_task(watched.engine, watched.task, ELSEWHERE), alerts=[])
    assert state.served is not None
    assert state.decision is not None
    state = replace(state, decision=state.decision | {"rule": "nothing"})
    for champion, word, of in (
        (1, "healthy", ""),
        (2, "not monitored yet", ", of version 1"),
        (0, "the baseline answers", ", of version 1"),
    ):
        now = replace(state, served=replace(state.served, champion=champion))
        page = words(console_page("p", [now], base="", token="t"))
        assert word in page
        assert ("healthy" in page) == (champion == 1)
        assert f"{of}; floor" in page
        assert ("no version is champion" in page) == (champion == 0)


def test_an_alert_is_acknowledged_with_a_note_and_no_longer_blocks(alerted: World) -> None:
    client = ask(alerted)
    page = client.get("/").text
    assert "1 alert unacknowledged" in words(page)
    answer = client.post("/alerts/1/acknowledge", data={"token": token(page), "note": " looked: <i>a new plan</i> "},
                         headers={"origin": "http://127.0.0.1:8080"})  # fmt: skip
    assert (answer.status_code, answer.headers["location"]) == (303, "/?acknowledged=1")
    [alert] = list_alerts(alerted.engine, "churn")
    assert (alert["note"], alert["acknowledged_at"]) == ("looked: <i>a new plan</i>", LATER)
    page = client.get(answer.headers["location"]).text
    assert "nothing waits for you" in words(page)
    assert "Alert 1 is acknowledged." in words(page)
    assert "1 acknowledged, not resolved yet" in words(page)
    assert "&lt;i&gt;a new plan&lt;/i&gt;" in page
    assert "not blocked by any alert" in words(page)


@pytest.mark.parametrize(
    ("changed", "headers", "status"),
    [
        ({"token": ""}, {}, 403),
        ({"token": "guessed"}, {}, 403),
        ({}, {"origin": "http://elsewhere.example"}, 403),
        ({}, {"origin": "null"}, 403),
        ({}, {"sec-fetch-site": "cross-site"}, 403),
        ({}, {"host": "elsewhere.example:8080"}, 421),
        ({"note": "   "}, {}, 400),
        ({"note": "x" * 20_000}, {}, 413),
    ],
)
def test_what_another_site_may_have_sent_and_what_says_nothing_changes_nothing(
    alerted: World, changed: dict[str, str], headers: dict[str, str], status: int
) -> None:
    client = ask(alerted)
    fields = {"token": token(client.get("/").text), "note": "seen"} | changed
    assert client.post("/alerts/1/acknowledge", data=fields, headers=headers).status_code == status
    assert list_alerts(alerted.engine, "churn")[0]["acknowledged_at"] is None


def test_a_name_that_was_pointed_here_does_not_read_the_page(alerted: World) -> None:
    answer = ask(alerted).get("/", headers={"host": "elsewhere.example"})
    assert answer.status_code == 421
    assert "drift" not in answer.text


def test_a_note_that_could_not_be_taken_is_not_lost(alerted: World) -> None:
    answer = ask(alerted).post("/alerts/1/acknowledge", data={"token": "old", "note": 'a "long" thought'})
    assert 'value="a &#34;long&#34; thought"' in answer.text
    assert "older than this console" in words(answer.text)
    assert token(answer.text) != "old"


def test_an_alert_that_is_not_there_is_said(alerted: World) -> None:
    client = ask(alerted)
    answer = client.post("/alerts/7/acknowledge", data={"token": token(client.get("/").text), "note": "seen"})
    assert answer.status_code == 404
    assert "There is no alert 7. Hint: open alerts: 1." in words(answer.text)


def test_a_message_is_text_and_its_parts_stand_apart(alerted: World) -> None:
    page = ask(alerted).get("/").text
    assert "<b>" not in page
    assert "<dt>What</dt><dd>Half of <code>spend</code> is &lt;b&gt;gone&lt;/b&gt;.</dd>" in page
    assert "<dt>Do</dt><dd>Ask &amp; wait.</dd>" in page


def test_a_card_is_a_click_away(alerted: World) -> None:
    client = ask(alerted)
    [link] = re.findall(r'href="([^"]+/versions/1/card)"', client.get("/").text)
    assert "its card" in client.get(link).text
    answer = client.get(link.replace("/1/", "/2/"))
    assert answer.status_code == 404
    assert "There is no card of churn@2" in words(answer.text)


def test_runs_link_to_a_tracking_server_where_one_is_named(alerted: World) -> None:
    page = ask(alerted, runs=lambda version: f"http://127.0.0.1:5000/#/runs/{version.run_id}").get("/").text
    assert 'href="http://127.0.0.1:5000/#/runs/1234567890"' in page


def test_mounted_below_a_path_every_link_stays_below_it(alerted: World) -> None:
    client = ask(alerted, root_path="/console")
    page = client.get("/console/").text
    assert {link for link in re.findall(r'(?:href|action)="([^"]+)"', page) if link.startswith("/")} == {
        "/console/alerts/1/acknowledge", "/console/tasks/churn/versions/1/card", "/console/tasks/churn/versions/2/card"
    }  # fmt: skip
    answer = client.post("/console/alerts/1/acknowledge", data={"token": token(page), "note": "seen"})
    assert answer.headers["location"] == "/console/?acknowledged=1"


def test_every_empty_state_says_what_to_do_next(world: World) -> None:
    nothing = Elsewhere(lambda _: [], lambda _: [], card)
    said = words(ask(world, tasks=lambda: [], elsewhere=nothing).get("/").text)
    assert "skewless task new SERVICE" in said
    said = words(ask(world, elsewhere=nothing).get("/").text)
    assert "not serving" in said
    assert "skewless retrain churn" in said
    assert "skewless train churn" in said
    world.serve(0)
    said = words(ask(world, elsewhere=nothing).get("/").text)
    assert "the naive baseline" in said
    assert "Never monitored. Run skewless monitor churn" in said
    assert "never audited. Run skewless skew churn" in said


def test_a_task_file_that_is_wrong_and_a_registry_that_is_away_are_told_and_hide_nothing(alerted: World) -> None:
    def wrong() -> list[Any]:
        raise RegistryError("tasks/churn.toml is wrong.", hint="mend line 3.")

    answer = ask(alerted, tasks=wrong).get("/")
    assert answer.status_code == 500
    assert "tasks/churn.toml is wrong. mend line 3." in words(answer.text)

    def away(_task: Any) -> list[ModelVersion]:
        raise RegistryError("The registry is away.")

    said = words(ask(alerted, elsewhere=replace(ELSEWHERE, versions=away)).get("/").text)
    assert "The model registry cannot be read: The registry is away." in said
    assert "1 alert unacknowledged" in said


def test_a_state_that_cannot_be_read_is_told(alerted: World) -> None:
    def said_after(*changes: str) -> str:
        with alerted.engine.begin() as connection:
            for change in changes:
                connection.execute(text(change))
        answer = ask(alerted).get("/")
        assert answer.status_code == 500
        return unescape(words(answer.text))

    assert "of another version of skewless: it differs in message." in said_after(
        "alter table alerts drop column message"
    )
    gone = said_after("alter table alerts rename to old", "create view alerts as select * from old", "drop table old")
    assert "The project's state cannot be read: no such table: main.old" in gone


class _Structure(HTMLParser):
    """Ids, open tags, and whether everything that was opened was closed in turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.wrong: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.ids += [value for name, value in attributes if name == "id"]
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_it_is_well_formed_and_points_nowhere_else(watched: World) -> None:
    answer = ask(watched).get("/")
    seen = _Structure(answer.text)
    assert (seen.wrong, seen.open) == ([], [])
    assert len(seen.ids) == len(set(seen.ids))
    assert seen.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(seen.headings, seen.headings[1:], strict=False))
    assert not re.search(r"<script|<img|@import|url\(|https?:", answer.text)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_the_last_word_is_realized_where_labels_had_their_time_else_estimated(watched: World) -> None:
    def latest(*points: Point) -> tuple[str, float, int] | None:
        state = read_task(watched.engine, watched.task, ELSEWHERE)
        return replace(state, points=list(points)).latest

    settled = Point(START, 1, estimated=0.8, realized=0.75, settled=True)
    coming = Point(START + DAY, 1, estimated=0.7, realized=0.4, settled=False)
    assert latest(settled, coming) == ("realized", 0.75, 1)
    assert latest(coming) == ("estimated", 0.7, 1)
    assert latest() is None


def test_the_cost_of_labels_that_are_still_coming_is_drawn_apart(watched: World) -> None:
    state = read_task(watched.engine, watched.task, ELSEWHERE)
    settled = Point(START, 1, cost=1.5, cost_low=1.0, cost_high=2.0, settled=True, maturity=1.0)
    coming = Point(START + DAY, 2, cost=2.5, cost_low=0.5, cost_high=4.5, maturity=0.4)
    drawn = console_plots.cost(replace(state, points=[settled, coming]))
    assert "Cost of a case over time, USD" in drawn
    assert "2024-03-02, version 2: 2.50, 40% of the labels known" in drawn
    assert "labels still coming" in drawn
    assert ">v2<" in drawn
    assert "still coming" not in console_plots.cost(replace(state, points=[settled]))
    assert console_plots.performance(replace(state, points=[settled])) == ""
    assert console_plots.cost(replace(state, points=[])) == ""


def test_all_features_together_are_drawn_in_multiples_of_what_is_usual(watched: World) -> None:
    state = read_task(watched.engine, watched.task, ELSEWHERE)
    assert {name: len(cells) for name, cells in state.together.items()} == {"reconstruction": 4}
    cells = [Cell(START, 2.0, 4.0, False), Cell(START + DAY, 6.0, 4.0, True), Cell(START + 2 * DAY, None, 4.0, False)]
    drawn = console_plots.together(replace(state, together={"reconstruction": cells}))
    assert drawn.partition("<figcaption>")[0].count("<circle") == 2
    assert "2024-03-02: 6.0000, usual up to 4.0000: drifted" in drawn
    assert "classifier" not in drawn
    assert console_plots.together(replace(state, together={})) == ""


def test_only_the_latest_chunks_are_shown(watched: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CHUNKS >= 14
    monkeypatch.setattr("monitoring.console_state.CHUNKS", 2)
    state: TaskState = read_task(watched.engine, watched.task, ELSEWHERE)
    assert {point.start for point in state.points} == {START + 2 * DAY, START + 3 * DAY}
    assert {len(cells) for cells in state.drift.values()} == {2}


def test_a_browser_shows_it_on_a_phone_by_day_and_by_night_and_every_control_is_named_and_reached(
    chromium: str, watched: World, tmp_path: Path, program: Callable[[str], str]
) -> None:
    page = ask(watched).get("/").text
    for dark in (False, True):
        seen = look(chromium, tmp_path, page, dark=dark, width=375)
        assert seen["room"] == 375
        assert seen["wide"] <= 375
        assert seen["plots"] == 3
        assert seen["letters"] > 9
        assert {name: seen[name] for name in ("fetched", "faint", "unreachable", "unseen_focus", "nameless")} == {
            "fetched": [], "faint": [], "unreachable": [], "unseen_focus": [], "nameless": []
        }  # fmt: skip
        assert seen["ground"] == ("rgb(20, 25, 31)" if dark else "rgb(255, 255, 255)")


def test_the_word_beside_a_task_is_what_was_decided(watched: World) -> None:
    state = read_task(watched.engine, watched.task, ELSEWHERE)
    assert state.decision is not None
    quiet = replace(state, alerts=[], skew=None)
    for rule, word in (("nothing", "healthy"), ("decay", "beyond the floor"), ("a_new_rule", "a new rule")):
        page = console_page("world", [replace(quiet, decision=state.decision | {"rule": rule})], base="", token="t")
        assert re.search(rf'<h2[^>]*>churn</h2><span class="tag \w+">{word}</span>', page)
    page = console_page("world", [replace(quiet, decision=None)], base="", token="t")
    assert "not monitored yet" in words(page)
