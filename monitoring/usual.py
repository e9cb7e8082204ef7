"""What is usual: a bundle's reference, and everything NannyML learns from it, each learned once, when it is asked for.

Figures of a chunk depend on the chunk and the reference, on nothing else: not on the chunks beside it, not on when it
is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from contracts.bundle import Bundle, FeatureSpec
from contracts.operations_policy import Monitoring
from contracts.task import Task
from monitoring.array_summaries import watched
from monitoring.chunks import deal_reference, split_factor
from monitoring.log_frame import CHUNK, LABEL, SCORE, reference_frame
from monitoring.losses import mean_loss
from monitoring.repeats import Repeats
from monitoring.report import Drift, Performance

if TYPE_CHECKING:
    from monitoring import nannyml_door as door

ESTIMABLE = ("roc_auc", "average_precision")
ERRORS = ("mae", "rmse")
"""A regression's metrics that can be estimated."""
_REFERENCE_ROWS = 3000
"""Most reference rows that multivariate detectors learn from; drawn evenly over its time."""
_CATEGORIES = 50
"""A text with more values is left out of them: as a category it would tell every chunk from every other."""


def estimated_metric(metric: str) -> str:
    """The metric estimated for a task's primary metric: itself, or the nearest of which an estimate exists."""
    if metric == "pinball":
        return "mae"
    return metric if metric in (*ESTIMABLE, *ERRORS) else "roc_auc"


def drift_method(spec: FeatureSpec) -> tuple[str, bool]:
    """NannyML's method for a feature of this type, and whether its values are categories.

    Numbers and texts: Jensen-Shannon distance, of binned values or of categories. Booleans: the change of their share.
    """
    if spec.kind == "text":
        return "jensen_shannon", True
    if spec.type == "bool":
        return "l_infinity", True
    return "jensen_shannon", False


class Usual:
    """The reference of one bundle, cut as a task's policy says; `Usual.of` makes it.

    Keep it between runs of the same bundle and policy, and nothing is learned twice.

    Args:
        frame: labelled rows that are known to be usual, as `log_frame.reference_frame` makes them.
        features: what is watched.
        rules: how many rows a chunk must have, and which detectors look at all features together.
        metric: the task's primary one.
    """

    def __init__(self, frame: pd.DataFrame, features: Sequence[FeatureSpec], rules: Monitoring, metric: str) -> None:
        self.frame, self.features = frame, tuple(features)
        self._rules, self._metric = rules, metric
        self._dealt: dict[int, pd.DataFrame | None] = {}
        self._univariate: dict[int, door.UnivariateDrift] = {}
        self._together: dict[str, door.Reconstruction | door.DomainClassifier] = {}
        self._estimator: door.EstimatedErrors | door.EstimatedPerformance | None = None
        self._calculators: dict[str, door.RealizedPerformance] = {}
        self._repeats: Repeats | None = None

    @classmethod
    def of(cls, task: Task, bundle: Bundle) -> Usual:
        """What is usual for a bundle."""
        inputs = bundle.metadata.features
        frame = reference_frame(bundle.reference(), inputs, rules=task.monitoring)
        return cls(frame, watched(inputs), task.monitoring, task.success.metric)

    @property
    def says_something(self) -> bool:
        """Whether the reference is large enough to be cut into chunks."""
        return self._deal(1) is not None

    @property
    def teaches(self) -> bool:
        """Whether an estimator can learn from it: it is large enough, and its labels differ."""
        usual = self._deal(1)
        return usual is not None and usual[LABEL].nunique() > 1

    @property
    def repeats(self) -> Repeats:
        """How often one and the same number is usual."""
        if self._repeats is None:
            self._repeats = Repeats(self.frame, self.features, min_rows=self._rules.min_rows)
        return self._repeats

    def drift(self, analysis: pd.DataFrame) -> dict[int, tuple[tuple[Drift, ...], Drift]]:
        """Drift of every feature, and of the score, for each chunk.

        Each chunk is held against reference chunks of about its own size. Feature order is kept; a feature that has no
        value in the reference has drifted if the chunk has one. Empty when the reference says nothing.
        """
        from monitoring import nannyml_door as door

        if not self.says_something:
            return {}
        methods = {spec.name: drift_method(spec) for spec in self.features} | {SCORE: ("jensen_shannon", False)}
        found: dict[int, tuple[tuple[Drift, ...], Drift]] = {}
        for factor, rows in self._by_factor(analysis).items():
            usual = self._deal(factor)
            assert usual is not None
            if factor not in self._univariate:
                self._univariate[factor] = door.UnivariateDrift(usual, methods)
            figures = {(figure.name, figure.chunk): figure for figure in self._univariate[factor].of(rows)}
            for chunk, part in _chunks_of(rows):
                drifts = {}
                for name, (method, _) in methods.items():
                    figure, present = figures.get((name, chunk)), bool(part[name].notna().any())
                    if figure is None:
                        drifts[name] = Drift(name, None, None, drifted=present, method=method)
                    else:
                        # NannyML gives no distance for a chunk without values; what stopped coming has drifted.
                        drifted = figure.alert or not present
                        drifts[name] = Drift(name, figure.value, figure.upper_threshold, drifted, method)
                found[chunk] = (tuple(drifts[spec.name] for spec in self.features), drifts[SCORE])
        return found

    def together(self, analysis: pd.DataFrame) -> dict[int, tuple[Drift, ...]]:
        """Drift of all features together, by each of the task's multivariate detectors, for each chunk."""
        from monitoring import nannyml_door as door

        usual = self._deal(1)
        if usual is None or analysis.empty or not self._rules.multivariate:
            return {}
        numbers, texts = self._varying(usual)
        if len(numbers) + len(texts) < 2:
            return {}
        found: dict[int, tuple[Drift, ...]] = {}
        for name in self._rules.multivariate:
            if name not in self._together:
                detector = door.Reconstruction if name == "reconstruction" else door.DomainClassifier
                self._together[name] = detector(_thinned(usual), numbers, texts)
            for each in self._together[name].of(analysis):
                drift = Drift(each.name, each.value, each.upper_threshold, each.alert, each.name)
                found[each.chunk] = (*found.get(each.chunk, ()), drift)
        return found

    def estimate(self, analysis: pd.DataFrame) -> dict[int, Performance]:
        """Performance of each chunk estimated without labels. Empty when the reference cannot teach the estimator."""
        from monitoring import nannyml_door as door

        usual = self._deal(1)
        if usual is None or not self.teaches or analysis.empty:
            return {}
        metric = estimated_metric(self._metric)
        if self._estimator is None and metric in ERRORS:
            # A column that is empty has no type, and nothing to tell.
            told = [each for each in self.features if usual[each.name].notna().any()]
            numbers, texts = ([each.name for each in told if each.kind == kind] for kind in ("number", "text"))
            self._estimator = door.EstimatedErrors(
                usual, metric=metric, score=SCORE, label=LABEL, numbers=numbers, texts=texts
            )
        elif self._estimator is None:
            self._estimator = door.EstimatedPerformance(usual, metric=metric, score=SCORE, label=LABEL)
        figures = self._estimator.of(analysis)
        return {figure.chunk: Performance(metric, figure.value, figure.low, figure.high) for figure in figures}

    def realize(self, analysis: pd.DataFrame, metric: str) -> dict[int, Performance]:
        """Performance of each chunk on the rows whose label is known; no entry for a chunk without any."""
        labelled = analysis[analysis[LABEL].notna()]
        if labelled.empty:
            return {}
        if metric not in ESTIMABLE:
            return {chunk: mean_loss(rows, metric) for chunk, rows in _chunks_of(labelled)}
        from monitoring import nannyml_door as door

        usual = self._deal(1)
        if usual is None or not self.teaches:
            # The chunks stand in for it: it sets NannyML's thresholds only, which nobody reads here.
            calculator = door.RealizedPerformance(labelled, metric=metric, score=SCORE, label=LABEL)
        else:
            if metric not in self._calculators:
                self._calculators[metric] = door.RealizedPerformance(usual, metric=metric, score=SCORE, label=LABEL)
            calculator = self._calculators[metric]
        figures = calculator.of(labelled)
        return {figure.chunk: Performance(metric, figure.value, figure.low, figure.high) for figure in figures}

    def _by_factor(self, analysis: pd.DataFrame) -> dict[int, pd.DataFrame]:
        """Analysis rows grouped by how finely the reference must be dealt to be comparable with their chunk."""
        usual = self.frame[CHUNK].to_numpy()
        factors = {
            chunk: split_factor(usual, len(rows), min_rows=self._rules.min_rows) for chunk, rows in _chunks_of(analysis)
        }
        wanted = analysis[CHUNK].map(factors)
        return {int(factor): analysis[wanted == factor] for factor in sorted(set(factors.values()))}

    def _deal(self, factor: int) -> pd.DataFrame | None:
        if factor not in self._dealt:
            dealt = deal_reference(self.frame[CHUNK].to_numpy(), factor, min_rows=self._rules.min_rows)
            self._dealt[factor] = (
                None if dealt is None else self.frame.assign(**{CHUNK: dealt})[dealt >= 0].reset_index(drop=True)
            )
        return self._dealt[factor]

    def _varying(self, usual: pd.DataFrame) -> tuple[list[str], list[str]]:
        """Columns that tell something: more than one value, and of texts not too many."""
        counts = {spec.name: usual[spec.name].nunique() for spec in self.features}
        numbers = [each.name for each in self.features if each.kind == "number" and counts[each.name] > 1]
        texts = [each.name for each in self.features if each.kind == "text" and 1 < counts[each.name] <= _CATEGORIES]
        return numbers, texts


def _thinned(usual: pd.DataFrame) -> pd.DataFrame:
    step = -(-len(usual) // _REFERENCE_ROWS)
    return usual.iloc[::step].reset_index(drop=True)


def _chunks_of(frame: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    for chunk in np.unique(frame[CHUNK]).tolist():
        yield chunk, frame[frame[CHUNK] == chunk]
