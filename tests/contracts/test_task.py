"""A task file says the whole policy; a wrong one fails at load and says where."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from contracts.task import Task, TaskError, load_task

TaskFile = Callable[..., Path]


def test_a_task_is_loaded_with_absolute_paths(task_file: TaskFile) -> None:
    path = task_file()
    task = load_task(path)
    project = path.parents[1].resolve()
    assert task.name == "churn"
    assert task.feature_repo == project.parent / "project" / "repo"
    assert task.spine.sql == path.parent / "churn.sql"
    assert task.spine.tables == {"visits": project / "data" / "events" / "visits"}
    assert task.spine.keys == ("user",)
    assert task.rollout.deadline == timedelta(days=7)


def test_a_task_cannot_be_changed(task_file: TaskFile) -> None:
    task = load_task(task_file())
    with pytest.raises(ValidationError, match="frozen"):
        task.success.floor = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('kind = "binary"', 'kind = "binery"', ["kind = 'binery'", "'binary'"]),
        ('metric = "roc_auc"', 'metric = "roc_acu"', ["roc_acu", "log_loss", "did you mean 'roc_auc'?"]),
        ('metric = "roc_auc"', 'metric = "zzz"', ["'zzz' is not one of roc_auc"]),
        (
            "floor = 0.6\n",
            "flor = 0.6\n",
            ["success.flor = 0.6: no such field; did you mean 'floor'?", "success.floor"],
        ),
        ('name = "churn"', 'nmae = "churn"', ["nmae = 'churn': no such field; did you mean 'name'?", "name: "]),
        ('name = "churn"', 'name = "Churn!"', ["name = 'Churn!'", "pattern"]),
        ("p99_ms = 50", "p99_ms = 0", ["budget.p99_ms = 0", "greater than 0"]),
        ("p99_ms = 50", "p99_ms = inf", ["budget.p99_ms = inf", "finite"]),
        ("performance_floor = 0.6", "performance_floor = nan", ["monitoring.performance_floor = nan", "finite"]),
        ("p99_ms = 50", 'p99_ms = "fast"', ["budget.p99_ms = 'fast'", "number"]),
        ("missed = 3.0", "missed = -3.0", ["success.cost.missed = -3.0"]),
        ('keys = ["user"]', "keys = []", ["spine.keys = []", "at least 1"]),
        ("performance_floor = 0.6", "", ["monitoring.performance_floor: Field required"]),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_rule(
    task_file: TaskFile, old: str, new: str, told: list[str]
) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(task_file((old, new)))
    for each in told:
        assert each in caught.value.fact


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ('[serving]\nrefuse_unknown = ["usr"]\n', "'usr', which is not in spine.keys; did you mean 'user'?"),
        ("[rollout]\ncanary_steps = [0.1, 0.05]\n", "canary_steps must rise, got [0.1, 0.05]"),
        ("[rollout]\ncanary_steps = [0.1, 0.1]\n", "canary_steps must rise"),
        ("[rollout]\ncanary_steps = []\n", "rollout.canary_steps = []"),
        ("[rollout]\ncanary_steps = [1.0]\n", "rollout.canary_steps.0 = 1.0"),
        ('[rollout]\nshadow_bake = "0s"\n', "rollout.shadow_bake"),
        ("[rollout]\nshadow_samples = 0\n", "rollout.shadow_samples = 0"),
        ('[serving]\nmode = "later"\n', "serving.mode = 'later'"),
        ('[batch]\nhorizon = "30m"\n', "batch.horizon must be at least batch.every"),
        ('[batch]\nevery = "6h"\nhorizon = "1d"\n', "batch.good_for must be at least batch.every"),
        ("[batch]\nray_from_rows = 0\n", "batch.ray_from_rows = 0"),
        ("[rollout]\nskip_shadow = true\n", "rollout.skip_shadow = True: no such field"),
        ('[training]\nwindow = "10d"\nholdout = "5d"\nvalidation = "5d"\n', "training.window must be longer"),
        ("[training.params]\ndepth = [1]\n", "training.params.depth"),
        ("[fairness]\nslices = 'city'\n", "fairness.slices = 'city'"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(task_file: TaskFile, section: str, told: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(task_file(extra="\n" + section))
    assert told in caught.value.fact


def test_several_mistakes_are_told_at_once(task_file: TaskFile) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(task_file(("p99_ms = 50", "p99_ms = 0"), ("missed = 3.0", "missed = -1")))
    assert "budget.p99_ms" in caught.value.fact
    assert "success.cost.missed" in caught.value.fact
    assert caught.value.hint == "fix the fields above."


def test_a_task_that_is_not_there_names_the_ones_that_are(task_file: TaskFile) -> None:
    path = task_file()
    with pytest.raises(TaskError) as caught:
        load_task(path.with_name("chrn.toml"))
    assert "Task 'chrn' not found" in caught.value.fact
    assert caught.value.hint == "tasks here: churn; did you mean 'churn'?"
    with pytest.raises(TaskError, match=r"tasks here: none\."):
        load_task(path.parent / "nowhere" / "churn.toml")


def test_files_that_are_not_toml_or_not_text(task_file: TaskFile) -> None:
    with pytest.raises(TaskError, match=r"not valid TOML: .*line \d+"):
        load_task(task_file(extra="\n[spine\n"))
    path = task_file()
    path.write_bytes(b"name = '\xff\xfe'")
    with pytest.raises(TaskError, match="not valid TOML: 'utf-8'"):
        load_task(path)


def test_a_spine_query_that_does_not_exist(task_file: TaskFile) -> None:
    with pytest.raises(TaskError, match=r"spine\.sql names .*other\.sql, which does not exist"):
        load_task(task_file(("churn.sql", "other.sql")))


def test_which_metric_is_better(raw_task: dict[str, Any]) -> None:
    assert Task.model_validate(raw_task).is_better(0.8, 0.7)
    raw_task["success"]["metric"] = "log_loss"
    assert Task.model_validate(raw_task).is_better(0.7, 0.8)


def test_the_task_as_trained_holds_the_query_and_no_path(task_file: TaskFile) -> None:
    task = load_task(task_file())
    told = json.dumps(task.fingerprint_data())
    assert "select * from visits" in told
    assert str(task_file().parents[1]) not in told
    assert task.fingerprint_data() == load_task(task_file()).fingerprint_data()


def undescribed(model: type[BaseModel], at: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        if not field.description:
            found.append(at + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += undescribed(field.annotation, f"{at}{name}.")
    return found


def test_every_field_says_what_it_is() -> None:
    assert undescribed(Task) == []


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("perfect_auc = 0.4", "audit.perfect_auc = 0.4"),
        ('stale_after = { visits = "soon" }', "audit.stale_after.visits = 'soon': a duration is"),
        ('accepted = ["basket"]', "audit.accepted.0 = 'basket'"),
        ('accpted = ["leak:basket"]', "audit.accpted = ['leak:basket']: no such field; did you mean 'accepted'?"),
    ],
)
def test_the_audits_thresholds_are_checked(task_file: TaskFile, section: str, told: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(task_file(extra=f"\n[audit]\n{section}\n"))
    assert told in caught.value.fact
