"""A task file with its spine, on disk, for the tests of what stages agree on."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TASK = """
name = "churn"
kind = "binary"
feature_repo = "../repo"
feature_service = "churn_v1"

[spine]
sql = "churn.sql"
tables = { visits = "../data/events/visits" }
id = "case_id"
event_timestamp = "asked_at"
keys = ["user"]
request_fields = ["basket"]
label = "churned"
label_known_at = "known_at"

[success]
metric = "roc_auc"
floor = 0.6
cost = { false_alarm = 1.0, missed = 3.0 }

[budget]
p99_ms = 50
requests_per_second = 100

[monitoring]
performance_floor = 0.6
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Callable[..., Path]:
    """Write the task with some text replaced; its SQL lies beside it."""

    def write(*replacements: tuple[str, str], extra: str = "") -> Path:
        text = TASK
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "project" / "tasks" / "churn.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + extra)
        (path.parent / "churn.sql").write_text("select * from visits;\n")
        return path

    return write


@pytest.fixture
def raw_task() -> dict[str, Any]:
    return tomllib.loads(TASK)
