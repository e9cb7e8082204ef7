"""A short replay of a stranger's project: killed and resumed, against one left alone; its figures recomputed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from contracts.predictions import read_predictions
from loop.project import Project
from loop.replay import ReplayRefused, replay
from loop.replay_policies import UnknownPolicy, parse_policies
from loop.replay_served import differing
from loop.replay_window import months
from loop.terminal import Steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SKEWLESS = str(Path(sys.executable).with_name("skewless"))
START, END = datetime(2024, 1, 25, tzinfo=UTC), datetime(2024, 1, 25, 15, tzinfo=UTC)
EVERY = timedelta(hours=8)
WINDOW = ["--from", "2024-01-25", "--to", "2024-01-25T15:00", "--policies", "never,task", "--every", "8h"]
SOON = {
    "shadow_samples = 100": "shadow_samples = 50",
    'shadow_bake = "6h"': 'shadow_bake = "4h"',
    "canary_samples = 10": "canary_samples = 5",
    'canary_bake = "6h"': 'canary_bake = "2h"',
    'window = "24d"': 'window = "12d"',
    "\nmin_rows = 100": "\nmin_rows = 50",
}
"""Rules of the stranger's task under which one version and then another climb within half a day."""
OFTEN = '\n[retraining]\nschedule = "8h"\ncooldown = "8h"\n'


@pytest.fixture(scope="module")
def kitchen(make_stranger, tmp_path_factory):
    """The stranger's project, a version trained every eight hours by its own rules; nothing of it applied yet."""

    def make(name: str) -> Path:
        root = make_stranger(tmp_path_factory.mktemp(name) / "kitchen")
        file = root / "tasks" / "late_delivery.toml"
        text = file.read_text()
        for rule, sooner in SOON.items():
            assert text.count(rule) == 1, rule
            text = text.replace(rule, sooner)
        file.write_text(text + OFTEN)
        return root

    return make


@pytest.fixture(scope="module")
def killed(kitchen) -> tuple[Path, list[psutil.Process]]:
    """A replay ended with SIGKILL while its workers train, and all that ran then."""
    root = kitchen("killed")
    command = [SKEWLESS, "-C", str(root), "replay", *WINDOW, "--jobs", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "task: training" in line:
                break
        else:
            pytest.fail("".join(said))
        started = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    return root, started


@pytest.fixture(scope="module")
def resumed(killed):
    """The report of the same command, given again."""
    root, _ = killed
    command = [SKEWLESS, "-C", str(root), "replay", *WINDOW, "--jobs", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def undisturbed(kitchen):
    """The same replay of an equal project, in this process and one piece after another; and where it is."""
    project = Project(kitchen("undisturbed"))
    policies = parse_policies(["never", "task"])
    done = replay(
        project,
        project.task(None),
        start=START,
        end=END,
        policies=policies,
        served=policies[0],
        every=EVERY,
        jobs=1,
        steps=Steps(),
    )
    return done, project


@pytest.fixture(scope="module")
def answers(undisturbed):
    """Each policy's answers beside what came of them, from its log and the raw table."""
    done, project = undisturbed
    orders = pl.read_parquet(project.root / "data" / "events" / "orders.parquet").drop("courier_id", "km")
    found = {}
    for policy in ("never", "task"):
        log = read_predictions(
            done.page.parent / "lives" / policy / "data" / "predictions" / "late_delivery", vectors=False
        )
        frame = pl.from_arrow(log)
        assert isinstance(frame, pl.DataFrame)
        found[policy] = frame.join(orders, left_on="case_id", right_on="order_id")
    return found


def test_a_replay_that_was_killed_comes_to_what_one_that_was_not_comes_to(resumed, undisturbed):
    report, said = resumed
    assert report == json.loads(json.dumps(undisturbed[0].to_dict()))
    assert "read every case" not in said
    assert "train on what was known" not in said


def test_nothing_of_a_killed_replay_is_left_running(killed):
    _, alive = psutil.wait_procs(killed[1], timeout=30)
    assert len(killed[1]) > 1
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []


def test_nothing_of_the_project_itself_is_touched(resumed, killed):
    left = {path.name for path in (killed[0] / "data").iterdir()}
    assert left == {"events", "feast", "replays"}
    assert not (killed[0] / "data" / "feast" / "online.db").exists() or not any(
        table.startswith("kitchen") and rows
        for table, rows in _rows_of(killed[0] / "data" / "feast" / "online.db").items()
    )


def _rows_of(database: Path) -> dict[str, int]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(database)) as connection:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return {name: connection.execute(f'select count(*) from "{name}"').fetchone()[0] for name in names}


def test_every_hour_was_served_through_the_online_store_without_skew(undisturbed):
    report = undisturbed[0].to_dict()
    skew = report["skew"]
    assert (skew["hours"], skew["answered"]) == (15, report["cases"])
    assert (skew["mismatches"], skew["not_judged"], skew["answers_differ"]) == (0, 0, 0)
    assert skew["vectors"] == skew["answers"] > report["cases"]  # what the challenger scored in shadow, too
    assert skew["values"] == 5 * skew["vectors"]
    assert report["failures"] == []


def test_metric_and_cost_are_those_of_the_logged_answers(undisturbed, answers):
    for policy in undisturbed[0].to_dict()["policies"]:
        rows = answers[policy["policy"]]
        assert policy["cases"] == rows.height == undisturbed[0].to_dict()["cases"]
        assert policy["metric"] == pytest.approx(roc_auc_score(rows["late"], rows["score"]), abs=1e-9)
        acts, late = rows["decision"].to_numpy(), rows["late"].to_numpy()
        alarms, misses = int(((acts == 1) & (late == 0)).sum()), int(((acts == 0) & (late == 1)).sum())
        assert policy["cost"] == alarms * 1 + misses * 4
        assert sum(month["cost"] for month in policy["months"]) == policy["cost"]
        assert sum(month["retrainings"] for month in policy["months"]) == policy["retrainings"]


def test_only_the_policy_that_trains_has_other_versions_and_each_climbed(undisturbed, answers):
    assert set(answers["never"]["version"]) == {0, 1}
    never, own = undisturbed[0].to_dict()["policies"]
    assert (never["retrainings"], never["promotions"]) == (0, 1)
    assert own["retrainings"] == len(own["retrained"]) > 0
    assert {each["reason"] for each in own["retrained"]} == {"schedule"}
    accepted = {each["version"] for each in own["retrained"] if each["status"] == "candidate"}
    assert set(answers["task"]["version"]) - {0, 1} <= accepted
    before = answers["task"].filter(pl.col("event_timestamp") < START + timedelta(hours=4))
    assert set(before["version"]) == {0}  # the baseline answers while the first version is in shadow


def test_before_a_policy_differs_its_answers_do_not(answers):
    same = answers["never"].join(answers["task"], on="case_id", suffix="_task")
    early = same.filter(pl.col("event_timestamp") < START + EVERY)
    assert early.height
    assert (early["score"] == early["score_task"]).all()
    assert (same["score"] != same["score_task"]).any()


def test_a_training_reads_what_it_would_have_read_then(undisturbed):
    from loop.features import open_features
    from loop.replay_window import read_window
    from loop.replay_work import as_replayed
    from training.frame import content_hash
    from training.retrieval import build_frame

    done, project = undisturbed
    task = as_replayed(project.task(None))
    window = read_window(task, open_features(task), done.page.parent / "window.parquet")
    for cutoff in (START, START + timedelta(hours=7)):
        mine, real = window.training_frame(cutoff), build_frame(task, cutoff=cutoff, progress=str)
        assert content_hash(mine.table) == content_hash(real.table)
        assert (mine.unlabelled, mine.sources, mine.specs) == (real.unlabelled, real.sources, real.specs)


def test_labels_of_the_window_are_those_of_the_spine(undisturbed):
    from contracts.spine import read_spine
    from loop.features import open_features
    from loop.replay_window import read_window
    from loop.replay_work import as_replayed

    done, project = undisturbed
    task = as_replayed(project.task(None))
    window = read_window(task, open_features(task), done.page.parent / "window.parquet")
    for known_at in (START - timedelta(days=9), START, END - timedelta(minutes=20), END):
        asked = {"start": START - task.training.window, "end": known_at, "known_at": known_at}
        mine, real = window.read_spine(task, **asked), read_spine(task, **asked)
        assert mine.equals(real)
        assert 0 < real["late"].null_count < real.num_rows


def test_a_policy_that_does_not_help_is_told_so(undisturbed):
    own = undisturbed[0].to_dict()["policies"][1]
    assert own["against"]["policy"] == "never"
    low, high = (own["against"]["cost_per_case"][end] for end in ("low", "high"))
    told = "It helped" if low > 0 else "It did harm" if high < 0 else ("It did not help", "It did harm", "It helped")
    assert own["verdict"].startswith(told)
    assert f"{own['retrainings']} retraining" in own["verdict"]


def test_a_window_without_history_is_refused(undisturbed):
    _, project = undisturbed
    policies = parse_policies(["never"])
    late = datetime(2024, 3, 1, tzinfo=UTC)
    with pytest.raises(ReplayRefused, match="needs cases from 2024-02-18 on"):
        replay(
            project,
            project.task(None),
            start=late,
            end=late + timedelta(days=2),
            policies=policies,
            served=policies[0],
            every=timedelta(days=1),
            jobs=1,
            steps=Steps(),
        )


def test_the_page_says_what_the_report_says(undisturbed):
    done, _ = undisturbed
    page = done.page.read_text()
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert done.to_dict()["policies"][1]["verdict"] in words.replace("&#x27;", "'")
    assert "no skew" in words
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?:|<script|<link", page)


def test_a_browser_shows_the_page_on_a_phone(undisturbed, program, tmp_path):
    probe = """<script>addEventListener("load", () => {
        document.title = JSON.stringify({wide: document.documentElement.scrollWidth, room: innerWidth,
            plots: [...document.querySelectorAll("figure > svg")].filter(
                each => each.getBoundingClientRect().height > 0).length});
    });</script>"""
    (tmp_path / "page.html").write_text(undisturbed[0].page.read_text().replace("</body>", probe + "</body>"))
    frame = '<body style="margin:0"><iframe id="phone" src="page.html" width="390" height="800"></iframe>'
    copy = """<script>addEventListener("load", () => setTimeout(() => {
        document.title = document.getElementById("phone").contentDocument.title; }, 50));</script>"""
    (tmp_path / "phone.html").write_text(f"<!doctype html><html><head></head>{frame}{copy}</body></html>")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--no-first-run"]
    arguments += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    arguments += ["--virtual-time-budget=2000", "--dump-dom", f"file://{tmp_path / 'phone.html'}"]
    done = subprocess.run([program("chromium"), *arguments], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    seen = json.loads(title[1])
    assert (seen["room"], seen["plots"]) == (390, 4)
    assert seen["wide"] <= 390


def test_an_answer_that_differs_is_counted_and_so_is_one_that_is_missing():
    log = pa.table(
        {
            "case_id": ["a", "b", "c"],
            "variant": ["champion", "champion", "canary"],
            "version": pa.array([1, 1, 2], pa.int32()),
            "score": [0.1, 0.2, 0.3],
            "decision": pa.array([0, 0, 1], pa.int8()),
            "quantiles": ["{}", "{}", "{}"],
        }
    )
    assert differing(log, log) == 0
    other = log.set_column(3, "score", pa.array([0.1, np.nextafter(0.2, 1), 0.3]))
    assert differing(log, other) == 1
    assert differing(log, log.slice(1)) == 1
    assert differing(log.slice(1), log) == 1


def test_months_are_calendar_months_cut_at_the_ends():
    found = months(datetime(2024, 1, 30, tzinfo=UTC), datetime(2024, 3, 2, 5, tzinfo=UTC))
    assert [f"{first:%m-%dT%H} {last:%m-%dT%H}" for first, last in found] == [
        "01-30T00 02-01T00",
        "02-01T00 03-01T00",
        "03-01T00 03-02T05",
    ]


@pytest.mark.parametrize(
    ("names", "says"), [(["nevr"], "did you mean 'never'"), (["never", "never"], "is named twice")]
)
def test_a_policy_that_is_none_is_refused_by_name(names, says):
    with pytest.raises(UnknownPolicy, match=says):
        parse_policies(names)
