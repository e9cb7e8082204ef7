"""The spine gives each case once, with nothing that was not known yet."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.spine import SpineError, labels_known, read_spine, spine_columns
from contracts.task import Task, load_task

START = datetime(2024, 1, 1, tzinfo=UTC)
INSTANT = pa.timestamp("us", tz="UTC")


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def visits(
    asked: list[float], known: list[float | None], label: list[int | None], ids: list[str] | None = None
) -> pa.Table:
    """Hours since the start; a case that is never known has no outcome."""
    return pa.table(
        {
            "case_id": ids or [f"c{i}" for i in range(len(asked))],
            "user": [f"u{i % 3}" for i in range(len(asked))],
            "basket": [float(i) for i in range(len(asked))],
            "asked_at": pa.array([at(each) for each in asked], INSTANT),
            "known_at": pa.array([None if each is None else at(each) for each in known], INSTANT),
            "churned": pa.array(label, pa.int64()),
        }
    )


@pytest.fixture
def task_over(task_file: Callable[..., Path]) -> Callable[..., Task]:
    def over(table: pa.Table, *replacements: tuple[str, str], sql: str = "select * from visits") -> Task:
        path = task_file(*replacements)
        (path.parent / "churn.sql").write_text(sql)
        folder = path.parents[1] / "data" / "events" / "visits" / "month=2024-01"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "part-0.parquet")
        return load_task(path)

    return over


DAY = {"start": at(0), "end": at(24)}


def test_a_label_is_seen_from_the_instant_it_is_known(task_over: Callable[..., Task]) -> None:
    task = task_over(visits([1, 2, 3], [5, 10, None], [1, 0, None]))
    for known_at, labels in ((4, [None, None, None]), (5, [1, None, None]), (10, [1, 0, None])):
        table = read_spine(task, **DAY, known_at=at(known_at))
        assert table["churned"].to_pylist() == labels
        assert table["known_at"].is_valid().to_pylist() == [label is not None for label in labels]


def test_the_window_is_closed_at_its_start_and_open_at_its_end(task_over: Callable[..., Task]) -> None:
    task = task_over(visits([0, 1, 2], [3, 3, 3], [1, 1, 1]))
    table = read_spine(task, start=at(0), end=at(2), known_at=at(9))
    assert table["case_id"].to_pylist() == ["c0", "c1"]
    with pytest.raises(ValueError, match="no time zone"):
        read_spine(task, start=datetime(2024, 1, 1), end=at(2), known_at=at(9))  # noqa: DTZ001


def test_rows_come_in_order_with_utc_microseconds(task_over: Callable[..., Task]) -> None:
    table = visits([2, 1, 1], [3, 3, 3], [1, 0, 1], ids=["a", "c", "b"])
    task = task_over(table, sql="select *, asked_at::timestamp_ns as other from visits -- the last line; of it")
    found = read_spine(task, **DAY, known_at=at(9))
    assert found["case_id"].to_pylist() == ["b", "c", "a"]
    assert found.schema.field("asked_at").type == found.schema.field("other").type == INSTANT
    assert found["asked_at"].to_pylist() == found["other"].to_pylist() == [at(1), at(1), at(2)]


def test_a_table_may_be_a_single_file_and_a_query_may_end_in_a_semicolon(task_over: Callable[..., Task]) -> None:
    task = task_over(visits([1], [2], [1]), sql="select * from visits;\n")
    file = next(task.spine.tables["visits"].rglob("*.parquet"))
    spine = task.spine.model_copy(update={"tables": {"visits": file}})
    assert read_spine(task.model_copy(update={"spine": spine}), **DAY, known_at=at(9)).num_rows == 1


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 30), st.one_of(st.none(), st.integers(0, 40)), st.integers(0, 1)),
        min_size=1,
        max_size=12,
    ),
    cutoff=st.integers(0, 40),
)
def test_labels_known_are_those_of_the_obvious_loop(
    task_over: Callable[..., Task], rows: list[tuple[int, int | None, int]], cutoff: int
) -> None:
    asked, known, label = ([row[i] for row in rows] for i in range(3))
    labels = [None if k is None else value for k, value in zip(known, label, strict=True)]
    task = task_over(visits(asked, known, labels))
    expected = {
        f"c{i}": float(value) for i, (a, k, value) in enumerate(rows) if a < 24 and k is not None and k <= cutoff
    }
    found = labels_known(task, **DAY, known_at=at(cutoff))
    assert dict(zip(found["id"].to_pylist(), found["label"].to_pylist(), strict=True)) == expected
    assert found.schema.types == [pa.string(), INSTANT, pa.float64(), INSTANT]


def test_a_date_is_the_beginning_of_its_day(task_over: Callable[..., Task]) -> None:
    sql = "select * replace (asked_at::date as asked_at, (known_at + interval 1 day)::date as known_at) from visits"
    found = read_spine(task_over(visits([1, 2], [5, 10], [1, 0]), sql=sql), **DAY, known_at=at(48))
    assert found["asked_at"].to_pylist() == [START] * 2
    assert found["known_at"].to_pylist() == [START + timedelta(days=1)] * 2
    assert found.schema.field("asked_at").type == found.schema.field("known_at").type == INSTANT


def test_a_missing_table_names_its_place(task_over: Callable[..., Task], tmp_path: Path) -> None:
    task = task_over(visits([1], [2], [1]), ("../data/events/visits", "../data/events/nowhere"))
    with pytest.raises(SpineError, match=r"table 'visits' has no data at .*nowhere") as caught:
        read_spine(task, **DAY, known_at=at(9))
    assert "mend its path in spine.tables, or land it: `skewless ingest`" in caught.value.hint


@pytest.mark.parametrize(
    "sql",
    [
        "selec * from visits",
        "select * from other",
        "select nothing from visits",
        "select *, 'x'::int as odd from visits",
    ],
)
def test_a_query_that_fails_names_its_file(task_over: Callable[..., Task], sql: str) -> None:
    with pytest.raises(SpineError, match=r"the spine query .*churn\.sql failed"):
        read_spine(task_over(visits([1], [2], [1]), sql=sql), **DAY, known_at=at(9))


def test_a_named_column_that_the_query_lacks(task_over: Callable[..., Task]) -> None:
    task = task_over(visits([1], [2], [1]), sql="select * exclude (basket) from visits")
    with pytest.raises(SpineError, match=r"no column 'basket' \(spine\.request_fields\), only case_id, user, asked_at"):
        read_spine(task, **DAY, known_at=at(9))


def test_a_column_named_wrongly_meets_its_nearest(task_over: Callable[..., Task]) -> None:
    task = task_over(visits([1], [2], [1]), ('label = "churned"', 'label = "chrned"'))
    with pytest.raises(SpineError, match=r"'chrned' \(spine\.label\)") as caught:
        read_spine(task, **DAY, known_at=at(9))
    assert caught.value.hint == "did you mean 'churned'?"


def test_the_columns_of_a_spine_are_known_without_reading_it(task_over: Callable[..., Task]) -> None:
    columns = spine_columns(task_over(visits([1], [2], [1]), sql="select *, 1 as extra from visits -- all;"))
    assert (columns["churned"], columns["extra"]) == ("BIGINT", "INTEGER")
    assert columns["asked_at"] == "TIMESTAMP WITH TIME ZONE"


def test_cases_are_named_and_unique(task_over: Callable[..., Task]) -> None:
    with pytest.raises(SpineError, match="1 spine rows repeat a 'case_id'"):
        read_spine(task_over(visits([1, 2], [3, 3], [1, 1], ids=["a", "a"])), **DAY, known_at=at(9))
    nameless = "select * replace (nullif(case_id, 'c0') as case_id) from visits"
    with pytest.raises(SpineError, match="1 spine rows have no 'case_id'"):
        read_spine(task_over(visits([1, 2], [3, 3], [1, 1]), sql=nameless), **DAY, known_at=at(9))


def test_columns_may_have_any_name(task_over: Callable[..., Task]) -> None:
    odd = 'select * rename (churned as "churned ""yes""") from visits'
    task = task_over(visits([1], [2], [1]), ('label = "churned"', "label = 'churned \"yes\"'"), sql=odd)
    assert read_spine(task, **DAY, known_at=at(9))['churned "yes"'].to_pylist() == [1]
