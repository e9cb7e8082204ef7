from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert

from contracts.state import deployments
from contracts.task import TaskError
from loop.project import Project, ProjectError

TASK = """
name = "{name}"
kind = "binary"
feature_repo = "../repo"
feature_service = "s"
[spine]
sql = "spine.sql"
tables = {{ t = "../data/t.parquet" }}
id = "id"
event_timestamp = "at"
keys = ["k"]
label = "y"
label_known_at = "known"
[success]
metric = "roc_auc"
floor = 0.6
cost = {{ false_alarm = 1, missed = 2 }}
[budget]
p99_ms = 50
requests_per_second = 10
[monitoring]
performance_floor = 0.6
"""


def make(root: Path, *names: str) -> Project:
    (root / "tasks").mkdir()
    (root / "repo").mkdir()
    (root / "tasks" / "spine.sql").write_text("select 1")
    for name in names:
        (root / "tasks" / f"{name}.toml").write_text(TASK.format(name=name))
    return Project(root)


def test_the_only_task_needs_no_name(tmp_path):
    assert make(tmp_path, "churn").task(None).name == "churn"


def test_several_tasks_must_be_named_and_the_error_lists_them(tmp_path):
    project = make(tmp_path, "churn", "fraud")
    with pytest.raises(ProjectError, match="name one of churn, fraud"):
        project.task(None)
    assert project.task("fraud").name == "fraud"


def test_of_several_tasks_the_default_is_meant(tmp_path):
    project = make(tmp_path, "churn", "fraud")
    fraud, churn = (tmp_path / "tasks" / f"{name}.toml" for name in ("fraud", "churn"))
    fraud.write_text("default = true\n" + fraud.read_text())
    assert project.task(None).name == "fraud"
    assert project.task("churn").name == "churn"
    churn.write_text("default = true\n" + churn.read_text())
    with pytest.raises(ProjectError, match="2 of them are the default"):
        project.task(None)


def test_what_is_served_is_what_is_deployed(tmp_path):
    project = make(tmp_path, "churn", "fraud")
    # Not after minutes of waiting for one.
    with pytest.raises(ProjectError, match="is deployed: churn, fraud") as nothing:
        project.deployed_names()
    assert "skewless retrain TASK" in nothing.value.hint
    row = {"generation": 1, "champion": 0, "champion_bundle": "b", "stage": "idle", "share": 0.0}
    with project.open_state().begin() as connection:
        connection.execute(insert(deployments).values(task="fraud", since=datetime(2024, 1, 1, tzinfo=UTC), **row))
    assert project.deployed_names() == ["fraud"]


def test_a_misspelt_task_is_met_with_the_nearest(tmp_path):
    with pytest.raises(TaskError, match="did you mean 'churn'"):
        make(tmp_path, "churn").task("chrun")


def test_a_folder_without_tasks_says_where_it_looked(tmp_path):
    with pytest.raises(ProjectError, match=f"No task file in {tmp_path / 'tasks'}"):
        Project(tmp_path).task(None)


def test_the_ingest_hook_is_found_beside_the_definitions(tmp_path):
    project = make(tmp_path, "churn")
    (tmp_path / "repo" / "ingest.py").write_text(
        "def ingest(data, progress):\n    progress('hello')\n    return data\n"
    )
    said: list[str] = []
    assert project.ingest(project.task(None), said.append) == tmp_path / "data"
    assert said == ["hello"]


def test_a_repository_without_the_hook_says_what_to_do(tmp_path):
    project = make(tmp_path, "churn")
    with pytest.raises(ProjectError, match=r"has no ingest\.py"):
        project.ingest(project.task(None), print)
