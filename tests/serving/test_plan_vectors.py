"""The rules of time, without Feast: vectors from a fake store against a loop that reads like the rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.bundle import FeatureSpec
from serving.inputs import InputField, WrongInput
from serving.online import Key, Row, ViewSpec
from serving.vectors import Feature, FeaturePlan, Transform, TransformFailed, UnknownFeatures

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR = 3_600_000_000


class FakeStore:
    """Rows by (view, key); counts what it is asked."""

    waits = False

    def __init__(self, rows: dict[tuple[str, Key], Row]) -> None:
        self.rows = rows
        self.asked: list[tuple[str, Key]] = []

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        self.asked += [(spec.name, key) for spec, keys in asked for key in keys]
        return [[self.rows.get((spec.name, key)) for key in keys] for spec, keys in asked]


def view(name: str, **changes: Any) -> ViewSpec:
    shape: dict[str, Any] = {
        "name": name,
        "table": name,
        "join_keys": ("k",),
        "columns": ("k",),
        "features": (f"{name}_x",),
        "ttl": 0,
        "grid": 0,
        "empty": None,
    }
    return ViewSpec(**shape | changes)


def plan(
    views: list[ViewSpec],
    rows: dict[tuple[str, Key], Row],
    transforms: list[Transform] | None = None,
    texts: tuple[str, ...] = (),
) -> FeaturePlan:
    owners = [(v.name, name) for v in views for name in v.features]
    owners += [(t.name, name) for t in transforms or [] for name in t.outputs]
    return FeaturePlan(
        service="s",
        fingerprint="f",
        inputs=[InputField("k", "integer", "key")],
        views=views,
        features=[
            Feature(name, f"{owner}__{name}", "text" if name in texts else "number", "declared")
            for owner, name in owners
        ],
        transforms=transforms or [],
        reader=FakeStore(rows),
    )


def at(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)


instants = st.integers(0, 12).map(lambda quarter: quarter * HOUR // 4)


@given(
    asked=st.lists(st.tuples(st.sampled_from([1, 2, 3, None]), instants), min_size=1, max_size=6),
    stored=st.dictionaries(st.sampled_from([1, 2, 3]), st.tuples(instants, st.sampled_from([0, 5]))),
    ttl=st.sampled_from([0, HOUR // 2, HOUR, 2 * HOUR]),
    grid=st.sampled_from([0, HOUR]),
    windowed=st.booleans(),
)
def test_a_value_is_what_was_knowable(
    asked: list[tuple[int | None, int]], stored: dict[int, tuple[int, int]], ttl: int, grid: int, windowed: bool
) -> None:
    compiled = plan(
        [view("v", ttl=ttl, grid=grid, empty=(0,) if windowed else None)],
        {("v", (key,)): (stamp, (value,)) for key, (stamp, value) in stored.items()},
    )
    found = compiled.vectors({"k": [key for key, _ in asked]}, [at(instant) for _, instant in asked])

    def expected(key: int | None, instant: int) -> float:
        if key is None:
            return math.nan
        point = instant // grid * grid if grid else instant
        stamp, value = stored.get(key, (None, 0 if windowed else math.nan))
        if stamp is not None and stamp > point:
            return math.nan
        age_from = point if windowed and value == 0 else stamp
        if ttl and age_from is not None and instant - age_from > ttl:
            return math.nan
        return value

    def status(key: int | None, instant: int) -> str:
        if key not in stored:
            return "not_found"
        stamp, value = stored[key]
        point = instant // grid * grid if grid else instant
        if stamp > point:
            return "future"
        return "expired" if ttl and instant - (point if windowed and value == 0 else stamp) > ttl else "present"

    np.testing.assert_array_equal(found.numbers[:, 0], np.array([expected(*each) for each in asked], np.float32))
    assert [found.known("v", i) for i in range(len(asked))] == [key in stored for key, _ in asked]
    assert found.statuses["v"] == [status(*each) for each in asked]
    assert found.view_times == [{"v": stored[key][0] if key in stored else None} for key, _ in asked]


def test_a_key_is_read_once_however_often_it_is_asked() -> None:
    compiled = plan([view("v"), view("w")], {("v", (1,)): (0, (4,))})
    found = compiled.vectors({"k": [1, 2, 1, None]}, [at(0)] * 4)
    assert compiled._reader.asked == [("v", (1,)), ("v", (2,)), ("w", (1,)), ("w", (2,))]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found.numbers[:, 0], np.array([4, np.nan, 4, np.nan], np.float32))


def test_withheld_values_are_counted_by_reason() -> None:
    compiled = plan([view("v", ttl=HOUR)], {("v", (1,)): (2 * HOUR, (1,)), ("v", (2,)): (0, (1,))})
    found = compiled.vectors({"k": [1, 2, 2]}, [at(HOUR)] * 2 + [at(3 * HOUR)])
    assert found.withheld() == {("v", "future"): 1, ("v", "expired"): 1}
    assert found.statuses == {"v": ["future", "present", "expired"]}


def test_a_transformation_sees_what_was_not_withheld_and_no_other_output() -> None:
    seen: list[Any] = []

    def run(given: dict[str, list[Any]], count: int) -> dict[str, list[Any]]:
        seen.append(given)
        return {"double": [None if each is None else 2 * each for each in given["v_x"]]}

    compiled = plan(
        [view("v", ttl=HOUR)],
        {("v", (1,)): (0, (3,))},
        [Transform(name, {"v_x": "v__v_x", "also": "v__v_x"}, ("double",), run) for name in ("a", "b")],
    )
    found = compiled.vectors({"k": [1, 1]}, [at(HOUR), at(HOUR + 1)])
    assert seen == [{"v_x": [3, None], "also": [3, None]}] * 2
    np.testing.assert_array_equal(found.numbers[:, 1], np.array([6, np.nan], np.float32))


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (
            lambda given, count: {"a": [1 / 0], "b": [1]},
            "'t' failed on these values: ZeroDivisionError: division by zero",
        ),
        (lambda given, count: {"a": [1, 2]}, "'t' failed on these values: KeyError: 'b'"),
        # Together as many values as there should be: those of `b` would slip into the place of another row.
        (lambda given, count: {"a": [1], "b": [1, 2, 3]}, "'t' gave 1 values of 'a' for 2 rows"),
        (lambda given, count: {"a": [1, 2], "b": ["x"]}, "'t' gave 1 values of 'b' for 2 rows"),
    ],
)
def test_a_transformation_that_fails_says_which_view(run: Any, told: str) -> None:
    compiled = plan([view("v")], {("v", (1,)): (0, (3,))}, [Transform("t", {"v_x": "v__v_x"}, ("a", "b"), run)])
    with pytest.raises(TransformFailed, match=told):
        compiled.vectors({"k": [1, 1]}, [at(HOUR)] * 2)


def test_vectors_follow_the_models_order_and_kinds() -> None:
    compiled = plan(
        [view("v", features=("a", "b", "t", "u"))], {("v", (1,)): (0, (1, True, "x", None))}, texts=("t", "u")
    )
    wanted = [
        FeatureSpec("u", "text"),
        FeatureSpec("b", "number"),
        FeatureSpec("t", "text"),
        FeatureSpec("a", "number"),
    ]
    found = compiled.vectors({"k": [1, 2]}, [at(0)] * 2, wanted)
    np.testing.assert_array_equal(found.numbers, np.array([[1, 1], [np.nan, np.nan]], np.float32))
    assert found.texts.tolist() == [["", "x"], ["", ""]]


def test_a_number_beyond_float32_is_infinite() -> None:
    compiled = plan([view("v")], {("v", (1,)): (0, (1e300,))})
    assert compiled.vectors({"k": [1]}, [at(0)]).numbers[0, 0] == np.inf


def test_a_model_with_other_inputs_is_refused_by_name() -> None:
    compiled = plan([view("v")], {})
    compiled.check([FeatureSpec("v_x", "number")])
    with pytest.raises(UnknownFeatures, match="'gone' as number; feature service 's' has nothing of that name"):
        compiled.check([FeatureSpec("gone", "number")])
    with pytest.raises(UnknownFeatures, match=r"'v_x' as text; .* has it as number \(declared\)"):
        compiled.check([FeatureSpec("v_x", "text")])


FIELDS = [
    InputField("k", "integer", "key"),
    InputField("small", "integer", "key", 32),
    InputField("when", "timestamp", "request"),
    InputField("text", "text", "request"),
    InputField("flag", "boolean", "request"),
    InputField("weight", "number", "request"),
]
GOOD: dict[str, list[Any]] = {
    "k": [1, None],
    "small": [-(2**31), None],
    "when": [at(0), None],
    "text": ["", None],
    "flag": [True, None],
    "weight": [1, None],
}


@pytest.mark.parametrize(
    ("change", "told", "hint"),
    [
        ({"k": None}, "reads entity key 'k', which is missing", "integer values"),
        (
            {"when": None, "whem": [at(0), None]},
            "reads request field 'when', which is missing",
            "rename the column 'whem'",
        ),
        ({"k": [1]}, "Column 'k' has 1 values for 2 rows", ""),
        ({"k": [1, "2"]}, "'k' is '2' in row 1; .* integer of 64 bits", "null is None"),
        ({"k": [True, None]}, "'k' is True in row 0", ""),
        ({"k": [2**63, None]}, "'k' is 9223372036854775808 in row 0", ""),
        ({"small": [1, 2**31]}, "'small' is 2147483648 in row 1; .* integer of 32 bits", ""),
        ({"when": [datetime(2024, 1, 1), None]}, "'when' is .* timestamp with a time zone", ""),  # noqa: DTZ001
        ({"text": [b"x", None]}, "'text' is b'x' in row 0", ""),
        ({"flag": [1, None]}, "'flag' is 1 in row 0; .* boolean", ""),
        ({"weight": ["1", None]}, "'weight' is '1' in row 0; .* number", ""),
        ({"weight": [math.nan, True]}, "'weight' is True in row 1", ""),
    ],
)
def test_columns_that_do_not_hold_what_is_read_are_refused_by_name(change: Any, told: str, hint: str) -> None:
    compiled = FeaturePlan(
        service="s", fingerprint="f", features=[], inputs=FIELDS, views=[view("v")], transforms=[], reader=FakeStore({})
    )
    compiled.look_up(GOOD, [at(0)] * 2)
    columns = {name: column for name, column in (GOOD | change).items() if column is not None}
    with pytest.raises(WrongInput, match=told) as refused:
        compiled.look_up(columns, [at(0)] * 2)
    assert hint in refused.value.hint


class TestArrays:
    """A model reads an array feature as its last places."""

    WANTED = (FeatureSpec("a_x[-3]", "number"), FeatureSpec("a_x[-1]", "number"))

    def made(self, type_: str = "Array(Float32)") -> FeaturePlan:
        rows = {("a", (1,)): (0, ([1.0, 2.0, 3.0, 4.0],)), ("a", (2,)): (0, ([7.0],)), ("a", (3,)): (0, (None,))}
        return FeaturePlan(
            service="s",
            fingerprint="f",
            inputs=[InputField("k", "integer", "key")],
            views=[view("a")],
            features=[Feature("a_x", "a__a_x", "other", type_)],
            transforms=[],
            reader=FakeStore(rows),
        )

    def test_the_last_places_are_read_and_null_where_the_array_is_shorter(self) -> None:
        plan = self.made()
        plan.check(self.WANTED)
        found = plan.vectors({"k": [1, 2, 3, 4]}, [at(HOUR)] * 4, self.WANTED).numbers
        nan = math.nan
        np.testing.assert_array_equal(found, np.array([[2, 4], [nan, 7], [nan, nan], [nan, nan]], np.float32))

    @pytest.mark.parametrize("type_", ["Array(String)", "Float32"])
    def test_places_of_what_is_no_array_of_numbers_are_refused(self, type_: str) -> None:
        with pytest.raises(UnknownFeatures, match=r"wants 'a_x\[-3\]'"):
            self.made(type_).check(self.WANTED)
