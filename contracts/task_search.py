"""The `search` section of a task: hyperparameters to look for, and for how long."""

from __future__ import annotations

from datetime import timedelta
from typing import Self

from pydantic import Field, model_validator

from contracts.duration import Duration
from contracts.serving_policy import Section


class Range(Section):
    """What a parameter may be: a number between two, or one of some values."""

    low: int | float | None = None
    """Smallest; whole numbers are drawn where both ends are whole."""
    high: int | float | None = None
    """Largest."""
    log: bool = False
    """Whether factors count rather than differences."""
    choices: tuple[int | float | str | bool, ...] = ()
    """The values themselves, in place of two ends."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("a range has low and high, or choices, not both")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"a range needs low below high, or choices; found {self.low} and {self.high}")
        elif self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0, found {self.low}")
        return self


class Search(Section):
    """Hyperparameters looked for before the fit, within the training part alone."""

    time: Duration = timedelta()
    """How long to look; "0s" is not at all."""
    trials: int = Field(default=50, ge=1)
    """Sets of parameters to try at most; the first is the task's own."""
    folds: int = Field(default=3, ge=1, le=10)
    """Stretches of the training part that each set is judged on, each after what it was fitted on."""
    space: dict[str, Range] = Field(default_factory=dict)
    """Parameter to range, such as `num_leaves = { low = 15, high = 127, log = true }`, over the learner's own."""
