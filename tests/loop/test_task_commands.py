"""`skewless task`: a file begun, checked against a stranger's repository, and taught to an editor."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from contracts.errors import SkewlessError
from contracts.locations import Locations
from contracts.registry import open_registry
from contracts.task import load_task
from loop.cli import main

EXAMPLE = Path(__file__).parents[2] / "tasks" / "late_arrival.toml"


def skewless(project, *args, status=0):
    done = CliRunner().invoke(main, ["-C", str(project), *args])
    assert done.exit_code == status, done.output
    return done.output


def checked(project, *args, status=0):
    done = CliRunner().invoke(main, ["-C", str(project), "task", "check", *args, "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def applied(stranger, tmp_path_factory):
    """The stranger's project with its definitions registered, and nothing else done."""
    root = tmp_path_factory.mktemp("applied") / "kitchen"
    for folder in ("definitions", "tasks", "data/events"):
        shutil.copytree(stranger / folder, root / folder)
    skewless(root, "apply")
    return root


@pytest.fixture
def edited(applied, tmp_path):
    """The same with text of the task or its query replaced."""

    def edit(*replacements, sql=None):
        for folder in ("definitions", "data"):
            if not (tmp_path / folder).exists():
                (tmp_path / folder).symlink_to(applied / folder)
        shutil.copytree(applied / "tasks", tmp_path / "tasks", dirs_exist_ok=True)
        path = tmp_path / "tasks" / "late_delivery.toml"
        text = path.read_text()
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        if sql:
            path.with_suffix(".sql").write_text(sql)
        return tmp_path

    return edit


def test_a_task_that_fits_says_what_will_happen(applied):
    found = checked(applied, "late_delivery")
    assert found["ok"]
    assert (found["problems"], found["features"]["vehicle"]) == ([], "text")
    train, validation, holdout = found["parts"]
    assert train["until"] == validation["from"]
    assert validation["until"] == holdout["from"]
    assert holdout["cases"] > 2000
    assert found["choice"]["learner"]["used"] == "lightgbm"
    assert found["choice"]["serving"]["used"] == "batch"
    assert "exist" not in found["choice"]["serving"]["reason"]
    assert [rule["what"] for rule in found["policy"]["serving"]] == ["mode", "job", "answer"]
    assert {"what": "canary 20%", "rule": "10 answers of its own and 6h at least"} in found["policy"]["rollout"]
    assert "placed as if it were then" in found["notes"][0]
    assert "Window (UTC)" in skewless(applied, "task", "check")


def test_only_what_is_known_at_the_instant_is_counted(applied):
    then = checked(applied, "late_delivery", "--as-of", "2024-01-20")
    assert then["parts"][-1]["until"].startswith("2024-01-20T00:00:00")
    assert then["notes"] == []


def test_a_file_is_checked_by_its_path(applied):
    assert checked(applied, str(applied / "tasks" / "late_delivery.toml"))["ok"]


@pytest.mark.parametrize(
    ("old", "new", "field", "told"),
    [
        ('feature_service = "lateness"', 'feature_service = "latenes"', "feature_service", "did you mean 'lateness'?"),
        ('feature_repo = "../definitions"', 'feature_repo = "../defs"', "feature_repo", "No Feast repository at"),
        ('keys = ["courier_id"]', 'keys = ["city"]', "spine.keys", "lacks 'courier_id' (int64)"),
        ('request_fields = ["km"]', "request_fields = []", "spine.request_fields", "lacks 'km' (Float64)"),
        ('label = "late"', 'label = "lat"', "spine.label", "did you mean 'late'?"),
        ('label = "late"', 'label = "city"', "spine.label", "'city' is VARCHAR, a number is wanted"),
        ('event_timestamp = "ordered_at"', 'event_timestamp = "km"', "spine.event_timestamp", "'km' is DOUBLE"),
        ('slices = ["city"]', 'slices = ["citty"]', "fairness.slices", "did you mean 'city'?"),
        ("[gates]", '[audit]\nstale_after = { courier_dya = "1d" }\n[gates]', "audit.stale_after", "'courier_day'"),
        ("[gates]", '[audit]\naccepted = ["leek:years"]\n[gates]', "audit.accepted", "'leek', which is no rule"),
        ("[gates]", '[audit]\naccepted = ["late:yeers"]\n[gates]', "audit.accepted", "did you mean 'years'?"),
        ("orders.parquet", "nothing.parquet", "spine.sql", "has no data at"),
    ],
)
def test_what_a_task_says_of_others_is_checked(edited, old, new, field, told):
    replacements = [(old, new)]
    if field == "spine.keys":
        replacements.append(('refuse_unknown = ["courier_id"]', "refuse_unknown = []"))
    found = checked(edited(*replacements), status=1)
    mine = [problem for problem in found["problems"] if problem["field"] == field]
    assert mine, found["problems"]
    assert any(told in problem["fact"] + problem["hint"] for problem in mine), mine


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("selec * from orders", "syntax error"),
        ("select * from orderz", "orderz"),
        ("select km from orders", "order_id"),
    ],
)
def test_a_query_that_cannot_give_the_spine_is_told(edited, sql, told):
    found = checked(edited(sql=sql), status=1)
    assert told in found["problems"][0]["fact"]
    assert found["parts"] == []


def test_a_repository_that_was_never_applied_says_what_to_run(stranger, tmp_path):
    for folder in ("tasks", "data"):
        shutil.copytree(stranger / folder, tmp_path / folder, ignore=shutil.ignore_patterns("feast"))
    shutil.copytree(stranger / "definitions", tmp_path / "definitions")
    [problem] = checked(tmp_path, status=1)["problems"]
    assert (problem["field"], "apply" in problem["hint"]) == ("feature_repo", True)


def test_a_new_task_lacks_only_what_a_person_knows(applied, tmp_path):
    project = tmp_path / "new"
    (project / "tasks").mkdir(parents=True)
    said = skewless(project, "task", "new", "lateness", "--repo", str(applied / "definitions"), "--name", "slow")
    assert "skewless task check slow" in said
    task = load_task(project / "tasks" / "slow.toml")
    assert task.spine.keys == ("courier_id",)
    assert task.spine.request_fields == ("km",)
    assert task.feature_repo == applied / "definitions"
    found = checked(project, status=1)
    assert {problem["field"] for problem in found["problems"]} == {"unfinished"}
    marked = (project / "tasks" / "slow.toml").read_text().count("FILL IN:")
    assert len(found["problems"]) == marked + 1


def test_a_new_task_filled_in_can_be_trained(applied, tmp_path):
    project = tmp_path / "filled"
    (project / "tasks").mkdir(parents=True)
    skewless(project, "task", "new", "lateness", "--repo", str(applied / "definitions"))
    path = project / "tasks" / "lateness.toml"
    table = f'tables = {{ orders = "{applied}/data/events/orders.parquet" }}'
    lines = [line.partition("  # FILL IN:")[0] for line in path.read_text().splitlines()]
    path.write_text("\n".join(table if line.startswith("tables") else line for line in lines))
    path.with_suffix(".sql").write_text(
        "select order_id as case_id, ordered_at as asked_at, courier_id, km, late as label, known_at as label_known_at "
        "from orders"
    )
    assert checked(project)["parts"][-1]["cases"] > 1000


def test_nothing_is_overwritten(applied, edited):
    project = edited()
    said = skewless(project, "task", "new", "lateness", "--name", "late_delivery", status=2)
    assert "late_delivery.toml exists" in said
    assert load_task(project / "tasks" / "late_delivery.toml").success.floor == 0.6
    assert "did you mean 'lateness'?" in skewless(project, "task", "new", "latenes", status=2)
    assert sorted(p.name for p in (project / "tasks").iterdir()) == ["late_delivery.sql", "late_delivery.toml"]


@pytest.mark.parametrize("name", ["Late Delivery", "../late", "2late", ""])
def test_a_name_that_no_task_may_have_writes_nothing(applied, tmp_path, name):
    project = tmp_path / "named"
    (project / "tasks").mkdir(parents=True)
    said = skewless(
        project, "task", "new", "lateness", "--repo", str(applied / "definitions"), "--name", name, status=2
    )
    assert "cannot be a task's name" in said
    assert list(project.rglob("*.toml")) == []


def test_every_default_of_a_new_task_is_toml(applied, tmp_path):
    """Whoever takes the comment sign away has the same task, but for what is not given."""
    project = tmp_path / "uncommented"
    (project / "tasks").mkdir(parents=True)
    skewless(project, "task", "new", "lateness", "--repo", str(applied / "definitions"))
    text = (project / "tasks" / "lateness.toml").read_text()
    plain = re.sub(r"^# (\w+ = )(?! # not given)", r"\1", text, flags=re.M)
    assert plain.count("\n# ") < text.count("\n# ")
    assert "seed" in tomllib.loads(plain)["training"]


def test_a_learner_is_not_said_of_cases_that_were_not_counted(edited):
    found = checked(edited(('label = "late"', 'label = "lat"')), status=1)
    assert set(found["choice"]) == {"serving"}
    said = skewless(edited(("lateness", "nothing")), "task", "check", status=1)
    assert "Decided by the task" not in said


@pytest.fixture(scope="module")
def schema():
    return json.loads(CliRunner().invoke(main, ["task", "schema"]).stdout)


def test_the_schema_accepts_what_loads(schema, applied):
    jsonschema.Draft202012Validator.check_schema(schema)
    for path in (EXAMPLE, applied / "tasks" / "late_delivery.toml"):
        jsonschema.validate(tomllib.loads(path.read_text()), schema)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('window = "90d"', 'window = "90 days"'),
        ('window = "90d"', "window = 90"),
        ("floor = 0.65", "flor = 0.65"),
        ('metric = "roc_auc"', 'metric = "roc_acu"'),
        ("p99_ms = 50", "p99_ms = 0"),
        ('name = "late_arrival"', 'name = "Late arrival"'),
        ("canary_steps = [0.05, 0.10]", "canary_steps = []"),
    ],
)
def test_the_schema_refuses_what_does_not(schema, old, new):
    text = EXAMPLE.read_text()
    assert old in text
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(text.replace(old, new)), schema)


def test_an_editor_is_told_what_every_field_means(schema):
    for part in [schema, *schema["$defs"].values()]:
        for name, field in part["properties"].items():
            assert field.get("description"), name
    window = schema["$defs"]["Training"]["properties"]["window"]
    assert window["default"] == "90d"
    assert schema["properties"]["training"]["default"]["window"] == "90d"


LEAKING = "select * replace (late + 0.001 * km as km) from orders"
"""The application would have to send the outcome with its request."""


def test_an_audit_of_sound_data_writes_its_page(applied, tmp_path):
    done = CliRunner().invoke(
        main,
        ["-C", str(applied), "audit", "--as-of", "2024-01-25", "--json", "--html", str(tmp_path / "audit.html")],
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["blocked"], len(report["features"]), len(report["sources"])) == (False, 5, 2)
    assert "<svg" in (tmp_path / "audit.html").read_text()


def test_leaking_data_is_audited_with_exit_status_1_and_never_trained_on(edited):
    project = edited(sql=LEAKING)
    assert "leak_perfect" in skewless(project, "audit", "--as-of", "2024-01-25", status=1)
    said = skewless(project, "train", "--as-of", "2024-01-25", status=1)
    assert "leak_perfect km_per_year: alone it has ROC AUC" in said
    assert "audit.accepted = ['leak_perfect:km_per_year']" in said
    with pytest.raises(SkewlessError, match="late_delivery"):
        open_registry(Locations(project / "data")).resolve("late_delivery@1")
