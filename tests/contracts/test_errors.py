"""An error is a fact, its evidence and the next step."""

from contracts.errors import SkewlessError


def test_the_hint_follows_the_fact() -> None:
    error = SkewlessError("Port 8000 is busy.", hint="choose another with --port.")
    assert str(error) == "Port 8000 is busy.\n\nHint: choose another with --port."
    assert (error.fact, error.hint) == ("Port 8000 is busy.", "choose another with --port.")


def test_a_fact_may_stand_alone() -> None:
    assert str(SkewlessError("Port 8000 is busy.")) == "Port 8000 is busy."
