"""A transformation brings along what it uses of its module, and whoever hashes its text sees a change of that."""

from __future__ import annotations

import math
import types
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import dill
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore
from hypothesis import given
from hypothesis import strategies as st

from asof.fingerprint import service_fingerprint
from asof.kept import UnkeptTransformation
from asof.repository import UnappliedRegistry, apply_repository, open_store
from asof.uses import HEAD, standing_alone, unkept

DAY = datetime(2013, 1, 1, tzinfo=UTC)

YAML = """\
project: demo
provider: local
registry: data/registry.db
offline_store: {type: asof.offline_store.AsofOfflineStore}
batch_engine: {type: asof.compute.AsofComputeEngine}
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
"""

RATES = """\
import math

BASE = 4.0
KINDS = {"b", "a"}


def rate():
    return math.sqrt(BASE)


def unused():
    return 0
"""

DEFINITIONS = """\
from datetime import timedelta
from functools import lru_cache

import polars as pl
from feast import Entity, FeatureService, Field, FileSource, PushSource, RequestSource, StreamFeatureView, ValueType
from feast.batch_feature_view import batch_feature_view
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

from rates import KINDS, rate as rate_of

TAX = 1.5
WAIT = timedelta(hours=1)
LIMIT = 100.0
source = FileSource(name="spend", path="data/spend.parquet", timestamp_field="ts")
user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)


@lru_cache
def fee(kinds=len(KINDS)):
    return kinds * steps(3)


def steps(n):
    return 1 if n == 0 else steps(n - 1) + WAIT.total_seconds() / 3600


@batch_feature_view(mode="python", entities=[user], schema=[Field(name="taxed", dtype=Float64)], source=source)
def spend(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(taxed=pl.col("amount") * TAX * rate_of() + fee() + added())


@on_demand_feature_view(sources=[spend], schema=[Field(name="capped", dtype=Float64)], mode="python")
def capped(inputs):
    return {"capped": [min(value, LIMIT) for value in inputs["taxed"]]}


def added():
    return 0.25


def doubled(rows):
    return rows.assign(twice=rows["amount"] * TAX)


stream = StreamFeatureView(
    name="stream",
    entities=[user],
    timestamp_field="ts",
    schema=[Field(name="twice", dtype=Float64)],
    source=PushSource(name="pushed", batch_source=source),
    mode="pandas",
    udf=doubled,
    udf_string=__import__("inspect").getsource(doubled),
)
service = FeatureService(name="batch", features=[spend, capped])
streamed = FeatureService(name="streamed", features=[stream])
"""


def applied(folder: Path, definitions: str = DEFINITIONS, rates: str = RATES) -> FeatureStore:
    (folder / "data").mkdir(exist_ok=True)
    ts = pa.array([DAY], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user": [1], "ts": ts, "amount": [2.5]}), folder / "data/spend.parquet")
    (folder / "feature_store.yaml").write_text(YAML)
    (folder / "definitions.py").write_text(definitions)
    (folder / "rates.py").write_text(rates)
    apply_repository(folder)
    for file in ("definitions.py", "rates.py"):  # whoever reads the registry does not have them
        (folder / file).unlink()
    return open_store(folder)


FEATURES = ["spend:taxed", "capped:capped"]


def values(store: FeatureStore, features: list[str] = FEATURES) -> list[float]:
    asked = pd.DataFrame({"user": [1], "event_timestamp": [DAY]})
    found = store.get_historical_features(asked, features).to_arrow()
    return [found[name.partition(":")[2]].to_pylist()[0] for name in features]


def test_what_a_transformation_uses_comes_along_and_nothing_is_unpickled(tmp_path, monkeypatch):
    store = applied(tmp_path)
    monkeypatch.setattr(dill, "loads", lambda *_: pytest.fail("unpickled"))
    store.registry.refresh()
    assert values(store) == [2.5 * 1.5 * 2 + 2 * 4 + 0.25] * 2
    assert values(store, ["stream:twice"]) == [3.75]


CHANGES = {
    "a constant": ({"TAX = 1.5": "TAX = 2.0"}, [2.5 * 2.0 * 2 + 8 + 0.25] * 2),
    "a constant that is no literal": ({"hours=1": "hours=2"}, [2.5 * 3 + 14 + 0.25] * 2),
    "a function": ({"return 0.25": "return 0.75"}, [2.5 * 3 + 8 + 0.75] * 2),
    "a function of a function": ({"== 0 else": "== 1 else"}, [2.5 * 3 + 6 + 0.25] * 2),
    "a constant of another module": ({"BASE = 4.0": "BASE = 9.0"}, [2.5 * 4.5 + 8 + 0.25] * 2),
    "a default": ({"len(KINDS)": "5 + len(KINDS)"}, [2.5 * 3 + 28 + 0.25] * 2),
    "a constant of an on-demand view": ({"LIMIT = 100.0": "LIMIT = 10.0"}, [15.75, 10.0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_what_it_uses_is_applied_and_changes_the_fingerprint(tmp_path, change):
    replaced, want = CHANGES[change]
    before = service_fingerprint(applied(tmp_path), "batch")
    assert service_fingerprint(applied(tmp_path), "batch") == before
    ((old, new),) = replaced.items()
    store = applied(tmp_path, DEFINITIONS.replace(old, new), RATES.replace(old, new))
    assert values(store) == want
    assert service_fingerprint(store, "batch") != before


def test_a_stream_views_constants_are_of_its_fingerprint_too(tmp_path):
    before = applied(tmp_path)
    fingerprint = service_fingerprint(before, "streamed")
    assert values(before, ["stream:twice"]) == [3.75]
    after = applied(tmp_path, DEFINITIONS.replace("TAX = 1.5", "TAX = 2.0"))
    assert values(after, ["stream:twice"]) == [5.0]
    assert service_fingerprint(after, "streamed") != fingerprint


def test_what_it_does_not_use_is_not_of_its_fingerprint(tmp_path):
    before = service_fingerprint(applied(tmp_path), "batch")
    after = applied(tmp_path, f"UNUSED = 7\n{DEFINITIONS}", RATES.replace("return 0\n", "return 1\n"))
    assert service_fingerprint(after, "batch") == before


REFUSED = {
    "an object": ({"TAX = 1.5": "TAX = object()"}, "View 'spend': its transformation uses 'TAX', a object, which"),
    "a module of the repository": (
        {"from rates import KINDS, rate as rate_of": "import rates as r\nrate_of, KINDS = lambda: r.rate(), r.KINDS"},
        "uses 'rate_of', whose text cannot be found",
    ),
    "a module of the repository, by name": (
        {"return 0.25": "return r.rate()", "TAX = 1.5": "import rates as r\nTAX = 1.5"},
        "uses 'r', a module of the repository: import from it what is used",
    ),
    "one name for two things": (
        {"TAX = 1.5": "TAX = 1.5\nBASE = 3", "return 0.25": "return BASE"},
        "uses 'BASE', which stands for two things",
    ),
    "nothing": ({"return 0.25": "return nowhere"}, "uses 'nowhere', which its module does not have"),
    "an object in an on-demand view": (
        {"LIMIT = 100.0": "class Limit(float): ...\n\n\nLIMIT = Limit(100)"},
        "View 'capped': its transformation uses 'LIMIT', a Limit, which cannot be written as text",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_a_registry_cannot_hold_is_refused_before_anything_is_applied(tmp_path, mistake):
    replaced, said = REFUSED[mistake]
    definitions = DEFINITIONS
    for old, new in replaced.items():
        definitions = definitions.replace(old, new)
    with pytest.raises(UnkeptTransformation, match=said) as refused:
        applied(tmp_path, definitions)
    assert "inside the function" in str(refused.value)
    with pytest.raises(UnappliedRegistry):
        open_store(tmp_path)


def function_of(value: Any) -> Any:
    made: dict[str, Any] = {"VALUE": value}
    exec(TEXT, made)
    return made["f"]


TEXT = "def f(rows):\n    return VALUE\n"

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False)
    | st.dates()
    | st.datetimes(timezones=st.none() | st.just(UTC))
    | st.timedeltas()
    | st.decimals(allow_nan=False)
)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner) | st.just(()),
    max_leaves=8,
)


@given(plain | st.frozensets(scalars) | st.sets(st.text()))
def test_a_constant_comes_back_equal_and_of_its_type(value):
    text = standing_alone(function_of(value), TEXT)
    assert text.startswith(HEAD)
    made: dict[str, Any] = {}
    exec(text, made)
    got = made["f"](None)
    assert type(got) is type(value)
    assert got == value
    assert standing_alone(made["f"], text) == text


@given(st.sets(st.text(), min_size=2))
def test_a_sets_text_does_not_depend_on_the_order_it_is_in(value):
    assert f"VALUE = set([{', '.join(sorted(map(repr, value)))}])" in standing_alone(function_of(value), TEXT)


def test_not_a_number_and_types_of_packages():
    made: dict[str, Any] = {}
    exec(standing_alone(function_of(math.nan), TEXT), made)
    assert math.isnan(made["f"](None))
    text = standing_alone(function_of(Decimal), TEXT)
    assert "from decimal import Decimal as VALUE" in text
    exec(text, made)
    assert made["f"](None) is Decimal


def test_a_function_made_in_another_keeps_what_it_closes_over():
    def scaled(factor: float) -> Any:
        def scale(rows):
            return [row * factor for row in rows]

        return scale

    text = "        def scale(rows):\n            return [row * factor for row in rows]\n"
    made: dict[str, Any] = {}
    exec(standing_alone(scaled(3), text), made)
    assert made["scale"]([2]) == [6]


def test_a_text_that_is_not_the_functions_holds_no_constant():
    made: dict[str, Any] = {"TAX": 1.5, "date": date, "math": math, "timedelta": timedelta}
    exec("f = lambda rows: (rows, TAX, date, math.pi)", made)
    assert unkept(made["f"], "f = lambda rows: ...") == {
        "TAX": "which only a function that is written with def can use"
    }
    assert unkept(types.FunctionType((lambda rows: rows).__code__, {}), "x") == {}
