"""The circuit breaker: when it lets something through, and when not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.breaker import Breaker


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def test_it_opens_after_failures_in_a_row_and_lets_one_try_through_after_its_rest() -> None:
    clock = Hands()
    breaker = Breaker(3, 10.0, clock)
    for _ in range(2):
        assert breaker.admits()
        breaker.fail()
    assert (breaker.state, breaker.admits()) == ("closed", True)
    breaker.fail()
    assert (breaker.state, breaker.opened, breaker.failed) == ("open", 1, 3)
    clock.at += 9.9
    assert not breaker.admits()
    clock.at += 0.1
    assert breaker.state == "half-open"
    assert [breaker.admits() for _ in range(3)] == [True, False, False]
    breaker.fail()
    assert (breaker.state, breaker.opened) == ("open", 1)
    clock.at += 10
    assert breaker.admits()
    breaker.succeed()
    assert (breaker.state, breaker.spared) == ("closed", 3)
    assert all(breaker.admits() for _ in range(5))


def test_a_success_between_begins_the_count_anew() -> None:
    breaker = Breaker(2, 10.0, Hands())
    for _ in range(10):
        breaker.fail()
        breaker.succeed()
    assert (breaker.state, breaker.opened) == ("closed", 0)


def test_a_try_that_never_comes_back_does_not_keep_the_next_one_waiting_for_ever() -> None:
    clock = Hands()
    breaker = Breaker(1, 10.0, clock)
    breaker.fail()
    clock.at += 10
    assert breaker.admits()
    clock.at += 9
    assert not breaker.admits()
    clock.at += 1
    assert breaker.admits()


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=60), st.integers(1, 4), st.floats(0.5, 5))
def test_it_agrees_with_the_obvious_account(steps: list[tuple[float, bool]], most: int, rest: float) -> None:
    clock = Hands()
    breaker = Breaker(most, rest, clock)
    in_a_row, barred_until = 0, 0.0
    for wait, works in steps:
        clock.at += wait
        admitted = in_a_row < most or clock.at - barred_until >= rest
        assert breaker.admits() is admitted
        if not admitted:
            continue
        if works:
            breaker.succeed()
            in_a_row = 0
        else:
            breaker.fail()
            in_a_row += 1
            barred_until = clock.at
