"""Computed in parts or in one piece, the answers are the same bytes."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asof import latest
from asof.definition import Feature, Key, Shard, View, Window
from asof.dtypes import TypeMismatch
from asof.engine import KeyTypeMismatch, Spine, as_of
from asof.session import Session
from asof.shards import Shards, WorkerMismatch
from asof.source import ColumnNotFound, Source
from asof.timeline import FOREVER
from asof.transform import Transform, TransformFailed

MINUTE = 60_000_000
START = 1_356_998_400_000_000
TYPES = {"x": pa.float64(), "n": pa.int64(), "s": pa.string()}
FEATURES = tuple(Feature(name, None, None) for name in TYPES)
WINDOWS = tuple(
    Window(Feature(f"{function}_{column}_{length}_{slide}", None, None), function, column, length or FOREVER, slide)
    for (function, column), length, slide in itertools.product(
        [("sum", "x"), ("mean", "x"), ("std", "x"), ("sum", "n"), ("percentile_50", "x"), ("last", "s"), ("count", "")],
        [7 * MINUTE, 0],
        [0, 5 * MINUTE],
    )
)


class Serially:
    """Workers that are this process; what crosses is pickled all the same."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self, function, *arguments, pieces=1):
        self.calls.append(function.__name__)
        if function.__name__ == "answered" and not any(v.source.transform for v in arguments[0].views):
            arguments = pickle.loads(pickle.dumps(arguments))
        result = function(*arguments)
        return [result] if pieces == 1 else list(result)

    def finished(self, handles):
        for place in reversed(range(len(handles))):  # in any order
            yield place, handles[place]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shards")


_serial = itertools.count()


def in_sql(rows: str) -> str:
    return f"select * replace (x * 3 as x) from {rows} where n is distinct from 1"


def in_polars(rows: pl.DataFrame) -> pl.DataFrame:
    # Looks across keys: it must see all rows, whatever the shard.
    return rows.with_columns(n=pl.col("n") + pl.col("n").count())


def views_of(path: Path, *, every: int, transform: Transform | None, created: bool) -> list[View]:
    source = Source("v", str(path), "ts", "created" if created else None, transform=transform)
    a, b = Key("a", "a", pa.int64(), None), Key("b", "bb", pa.string(), None)
    plain = View("plain", (a, b), FEATURES, FEATURES, (), source, 9 * MINUTE, every)
    windowed = View("windowed", (a, b), tuple(w.feature for w in WINDOWS), (), WINDOWS, source, 0, every)
    by_one = replace(windowed, name="by_one", keys=(b,))
    return [plain, windowed, replace(plain, name="all", keys=()), by_one]


history = st.lists(
    st.builds(
        lambda key, event, late, x, n, s: {
            "key": key,
            "event": START + event * MINUTE,
            "created": START + (event + late) * MINUTE,
            "x": x,
            "n": n,
            "s": s,
        },
        st.tuples(st.integers(1, 4), st.sampled_from(["23", "3", "é"])),
        st.integers(0, 30),
        st.sampled_from([0, 0, 0, 2, 15]),
        st.sampled_from([0.1, -0.2, 1e15, float("inf"), None]),
        st.sampled_from([1, 2**40, None]),
        st.sampled_from(["a", "b", None]),
    ),
    max_size=25,
)
questions = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, 4, 5, None]),
        st.sampled_from(["23", "3", "é", "never", None]),
        st.one_of(st.none(), st.integers(-2, 40)),
    ),
    max_size=20,
)


def spine_of(asked: list[tuple]) -> Spine:
    a, b, t = zip(*asked, strict=True) if asked else ((), (), ())
    keys = pa.table({"a": pa.array(a, pa.int64()), "bb": pa.array(b, pa.string())})
    at = np.array([START + (moment or 0) * MINUTE for moment in t], np.int64)
    return Spine(keys, at, np.array([moment is not None for moment in t], bool))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history,
    questions,
    st.integers(1, 5),
    st.sampled_from([0, 7 * MINUTE]),
    st.sampled_from([None, Transform(in_sql, is_sql=True), Transform(in_polars, is_sql=False)]),
    st.booleans(),
)
def test_any_number_of_shards_gives_the_answers_of_one_process(
    rows_to_parquet, folder, rows, asked, shards, every, transform, created
):
    path = folder / f"{next(_serial)}.parquet"
    rows_to_parquet(path, rows, ["a", "b"], TYPES)
    if not rows:  # an empty list says nothing about the keys' types
        pq.write_table(pq.read_table(path).set_column(1, "b", pa.array([], pa.string())), path)
    views, spine = views_of(path, every=every, transform=transform, created=created), spine_of(asked)
    with Session(threads=1) as session:
        one = as_of(views, spine, session)
    with Session(threads=1, elsewhere=Shards(shards, Serially(), {"threads": 1})) as session:
        split = as_of(views, spine, session)
    for want, got in zip(one, split, strict=True):
        assert got.view is want.view
        assert got.features.schema == want.features.schema
        assert repr(got.features.to_pylist()) == repr(want.features.to_pylist())  # NaN is NaN, and -0.0 is not 0.0
        assert (got.found == want.found).all()
        assert (got.event[got.found] == want.event[want.found]).all()


def events(path: Path, **columns) -> Source:
    count = len(next(iter(columns.values())))
    ts = pa.array([START + place * MINUTE for place in range(count)], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"k": list(range(count)), "ts": ts, **columns}), path)
    return Source("v", str(path), "ts", None)


def view_over(source: Source, feature: str, dtype: pa.DataType | None = None) -> View:
    wanted = (Feature(feature, None, dtype),)
    return View("v", (Key("k", "k", pa.int64(), None),), wanted, wanted, (), source, 0, 0)


def spine_over(keys: pa.Array) -> Spine:
    return Spine(pa.table({"k": keys}), np.full(len(keys), START + 10**10, np.int64), np.ones(len(keys), bool))


def test_a_shard_reads_its_keys_alone_and_the_shards_together_read_all(folder):
    source = events(folder / "read.parquet", x=list(range(50)))
    view = view_over(source, "x")
    seen = []
    with Session() as session:
        scan = session.scan(source)
        keys = session.hold("keys", pa.table({"code": list(range(50)), "k0": list(range(50))}))
        for number in range(4):
            sql = latest.rows_of(replace(view, shard=Shard(number, 4)), scan, keys, ["x"], until=START + 10**10)
            seen.append(session.arrow(sql)["c0"].to_pylist())
    assert all(0 < len(part) < 25 for part in seen)
    assert sorted(itertools.chain(*seen)) == list(range(50))


def test_a_python_transformation_runs_once_however_many_shards(folder):
    source = replace(events(folder / "once.parquet", n=[1, 2, 3]), transform=Transform(in_polars, is_sql=False))
    workers = Serially()
    with Session(elsewhere=Shards(3, workers)) as session:
        (answer,) = as_of([view_over(source, "n")], spine_over(pa.array([0, 1, 2])), session)
    assert answer.features["n"].to_pylist() == [4, 5, 6]
    assert workers.calls.count("transformed") == 1
    assert workers.calls.count("answered") > 1


def raises(rows):
    raise KeyError("nowhere")


@pytest.mark.parametrize(
    ("kind", "view", "keys"),
    [
        (ColumnNotFound, lambda s: view_over(s, "z"), [0]),
        (ColumnNotFound, lambda s: view_over(replace(s, transform=Transform(in_polars, is_sql=False)), "z"), [0]),
        (KeyTypeMismatch, lambda s: view_over(s, "n"), ["x"]),
        (TypeMismatch, lambda s: view_over(s, "word", pa.int64()), [1]),
        (TransformFailed, lambda s: view_over(replace(s, transform=Transform(raises, is_sql=False)), "n"), [0, 1]),
    ],
)
def test_an_error_is_the_one_a_single_process_raises(folder, kind, view, keys):
    wrong = view(events(folder / "wrong.parquet", n=[1, 2], word=["1", "two"]))
    said = []
    for elsewhere in (None, Shards(2, Serially())):
        with Session(elsewhere=elsewhere) as session, pytest.raises(kind) as caught:
            as_of([wrong], spine_over(pa.array(keys)), session)
        said.append((type(caught.value), str(caught.value), caught.value.hint))
    assert said[0] == said[1]


def test_what_the_source_lacks_is_met_before_any_worker_starts(folder):
    workers = Serially()
    wrong = view_over(events(folder / "early.parquet", n=[1]), "z")
    with Session(elsewhere=Shards(2, workers)) as session, pytest.raises(ColumnNotFound):
        as_of([wrong], spine_over(pa.array([0])), session)
    assert workers.calls == []


def test_another_duckdb_on_a_worker_is_refused(folder, monkeypatch):
    view = view_over(events(folder / "other.parquet", n=[1]), "n")
    monkeypatch.setattr("asof.shards.duckdb.__version__", "0.0.1")
    with (
        Session(elsewhere=Shards(2, Serially())) as session,
        pytest.raises(WorkerMismatch, match=r"runs DuckDB 0\.0\.1") as caught,
    ):
        as_of([view], spine_over(pa.array([0])), session)
    assert "constraints.txt" in caught.value.hint


def test_a_worker_need_not_import_feast_or_ray():
    code = "import asof.shards, sys; sys.exit(bool({'feast', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rows_lent_in_a_session_count_though_others_would_compute(tmp_path):
    def row(minute: int, x: float) -> pa.Table:
        ts = pa.array([START + minute * MINUTE]).cast(pa.timestamp("us", "UTC"))
        return pa.table({"a": [1], "b": ["23"], "ts": ts, "x": [x], "n": [7], "s": ["a"]})

    pq.write_table(row(1, 1.0), tmp_path / "rows.parquet")
    plain, *_ = views_of(tmp_path / "rows.parquet", every=0, transform=None, created=False)
    spine = Spine(pa.table({"a": [1], "bb": ["23"]}), np.array([START + 5 * MINUTE]), np.ones(1, bool))
    for lent, want in ((None, 1.0), (row(2, 2.0), 2.0)):
        with Session(elsewhere=Shards(3, Serially())) as session:
            if lent is not None:
                session.lend(plain.source, lent)
            (answer,) = as_of([plain], spine, session)
        assert answer.features["x"].to_pylist() == [want]
