from __future__ import annotations

import pytest

from training import choice
from training.choice import MEMORY_BYTES, choose

TABLE = {"weight": "number", "depot": "text"}


def budget(p99_ms):
    return {"p99_ms": p99_ms, "requests_per_second": 10}


@pytest.mark.parametrize(("p99_ms", "mode"), [(99.9, "online"), (100, "batch"), (500, "batch")])
def test_the_budget_decides_how_a_task_is_served(make_task, p99_ms, mode):
    serving = choose(make_task(budget=budget(p99_ms)), TABLE, 5_000).serving
    assert serving.chosen == mode
    assert f"p99 {p99_ms:g} ms" in serving.reason


@pytest.mark.parametrize("mode", ["online", "batch"])
def test_a_task_may_name_how_it_is_served(make_task, mode):
    task = make_task(budget=budget(50 if mode == "batch" else 500))
    task = task.model_copy(update={"serving": task.serving.model_copy(update={"mode": mode})})
    serving = choose(task, TABLE, 5_000).serving
    assert (serving.chosen, serving.used, serving.reason) == (mode, mode, "serving.mode names it")


@pytest.mark.parametrize(
    ("features", "rows", "learner", "because"),
    [
        (TABLE, 5_000, "lightgbm", "5,000 rows of 2 tabular features"),
        (TABLE, 1_000, "lightgbm", "within"),
        (TABLE, 999, "sklearn_linear", "999 labelled rows are fewer than 1,000"),
        (TABLE | {"clicks": "array"}, 5_000, "torch_sequence", "'clicks' and 0 more features are of kind array"),
        (TABLE | {"clicks": "array", "photo": "bytes"}, 10, "torch_sequence", "kind array, bytes"),
        (TABLE, MEMORY_BYTES, "torch_sequence", "learns in batches"),
    ],
)
def test_the_features_and_rows_decide_what_learns(make_task, features, rows, learner, because):
    found = choose(make_task(), features, rows).learner
    assert found.chosen == learner
    assert because in found.reason


def test_a_task_may_name_its_learner(make_task):
    task = make_task()
    task = task.model_copy(update={"training": task.training.model_copy(update={"learner": "lightgbm"})})
    found = choose(task, TABLE, 5).learner
    assert (found.chosen, found.used, found.reason) == ("lightgbm", "lightgbm", "training.learner names it")


def test_what_does_not_exist_is_said_and_replaced(make_task, monkeypatch):
    monkeypatch.setattr(choice, "LEARNERS", ("lightgbm",))
    monkeypatch.setattr(choice, "SERVING_MODES", ("online",))
    found = choose(make_task(budget=budget(500)), TABLE, 10)
    assert (found.serving.chosen, found.serving.used) == ("batch", "online")
    assert "batch does not exist here yet, online is used instead" in found.serving.reason
    assert (found.learner.chosen, found.learner.used) == ("sklearn_linear", "lightgbm")
    assert "sklearn_linear does not exist here yet, lightgbm is used instead" in found.learner.reason


def test_what_exists_is_used(make_task, monkeypatch):
    monkeypatch.setattr(choice, "LEARNERS", ("lightgbm", "sklearn_linear", "torch_sequence"))
    monkeypatch.setattr(choice, "SERVING_MODES", ("online", "batch"))
    found = choose(make_task(budget=budget(500)), TABLE | {"clicks": "array"}, 10)
    assert (found.serving.used, found.learner.used) == ("batch", "torch_sequence")
    assert "does not exist" not in found.serving.reason + found.learner.reason
