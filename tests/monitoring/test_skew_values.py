"""When two values are equal: the vectorised comparison against a slow loop that reads like the rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monitoring.skew_values import DIFFERENT, EQUAL, EXTRA, MISSING, compare_values

F = np.float32


def kind(online: Any, offline: Any, *, exact: bool = False) -> int:
    """One pair, as the rule says it."""
    null = [each is None or each == "" or each != each for each in (online, offline)]
    if all(null):
        return EQUAL
    if any(null):
        return MISSING if null[0] else EXTRA
    if isinstance(online, str):
        return EQUAL if online == offline else DIFFERENT
    with np.errstate(over="ignore"):
        a, b = F(online), F(offline)
        near = {a} if exact else {a, np.nextafter(a, F(np.inf)), np.nextafter(a, F(-np.inf))}
    return EQUAL if b in near else DIFFERENT


def moved(value: float, steps: int) -> float:
    found = F(value)
    for _ in range(abs(steps)):
        found = np.nextafter(found, F(np.copysign(np.inf, steps)))
    return float(found)


def kinds(online: pa.Array, offline: pa.Array) -> list[int]:
    found: list[int] = compare_values(pa.chunked_array([online]), pa.chunked_array([offline])).kinds.tolist()
    return found


numbers = st.none() | st.floats(width=32)


@given(st.lists(st.tuples(numbers, st.integers(-3, 3) | st.none(), numbers), max_size=30))
@example(
    [(3.4028234663852886e38, 1, None), (0.0, -1, None), (-0.0, 0, None), (1e-45, -2, None), (float("inf"), 0, None)]
)
def test_numbers(rows: list[tuple[float | None, int | None, float | None]]) -> None:
    """The offline value is the online one moved by some float32 values, or another one altogether."""
    online = [value for value, _, _ in rows]
    offline = [
        other if value is None or value != value or steps is None else moved(value, steps)
        for value, steps, other in rows
    ]
    expected = [kind(a, b) for a, b in zip(online, offline, strict=True)]
    assert kinds(pa.array(online, pa.float32()), pa.array(offline, pa.float64())) == expected
    assert kinds(pa.array(online, pa.float32()), pa.array(offline, pa.float32())) == expected


@pytest.mark.parametrize(("steps", "expected"), [(0, EQUAL), (1, EQUAL), (-1, EQUAL), (2, DIFFERENT), (-2, DIFFERENT)])
@pytest.mark.parametrize("value", [1.0, -1.0, 0.0, 1e-40, 3e38, 123.456])
def test_one_float32_value_apart_is_equal_and_two_are_not(value: float, steps: int, expected: int) -> None:
    assert kinds(pa.array([value], pa.float32()), pa.array([moved(value, steps)], pa.float64())) == [expected]


@given(st.lists(st.tuples(st.none() | st.integers(-(2**40), 2**40), st.integers(-1, 1)), max_size=20))
def test_whole_numbers_are_the_same_or_not(rows: list[tuple[int | None, int]]) -> None:
    """What a count is served as is its nearest float32; 16777217 is served as 16777216."""
    online = [None if value is None else float(F(value)) for value, _ in rows]
    offline = [None if value is None else value + off for value, off in rows]
    expected = [kind(a, b, exact=True) for a, b in zip(online, offline, strict=True)]
    assert kinds(pa.array(online, pa.float32()), pa.array(offline, pa.int64())) == expected


@given(st.lists(st.tuples(st.sampled_from([None, 0.0, 1.0, 2.0]), st.sampled_from([None, True, False])), max_size=20))
def test_booleans_are_the_numbers_they_are_served_as(rows: list[tuple[float | None, bool | None]]) -> None:
    expected = [kind(a, b, exact=True) for a, b in rows]
    online, offline = (pa.array([row[i] for row in rows], (pa.float32(), pa.bool_())[i]) for i in (0, 1))
    assert kinds(online, offline) == expected


texts = st.sampled_from([None, "", "a", "A", "a ", "\u00e9", "e\u0301"])


@given(st.lists(st.tuples(texts, texts), max_size=20), st.sampled_from([pa.string(), pa.large_string()]))
def test_texts(rows: list[tuple[str | None, str | None]], stored: pa.DataType) -> None:
    expected = [kind(a, b) for a, b in rows]
    assert kinds(pa.array([a for a, _ in rows], pa.string()), pa.array([b for _, b in rows], stored)) == expected


def test_values_and_their_largest_difference_are_told_as_the_model_saw_them() -> None:
    found = compare_values(
        pa.chunked_array([pa.array([1.0, None, 0.1, 4.0], pa.float32())]),
        pa.chunked_array([pa.array([3.5, 2.0, 0.1, None], pa.float64())]),
    )
    assert found.kinds.tolist() == [DIFFERENT, MISSING, EQUAL, EXTRA]
    assert found.wrong.tolist() == [0, 1, 3]
    assert [found.pair(row) for row in (0, 1, 3)] == [(1.0, 3.5), (None, 2.0), (4.0, None)]
    assert found.largest(found.wrong) == 2.5
    assert found.largest(np.array([1, 3])) == 0.0
    words = compare_values(pa.chunked_array([pa.array(["a", ""])]), pa.chunked_array([pa.array(["b", "c"])]))
    assert [words.pair(row) for row in (0, 1)] == [("a", "b"), (None, "c")]
    assert words.largest(words.wrong) == 0.0
