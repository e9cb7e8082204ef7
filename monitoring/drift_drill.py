"""The drift drill: detectors rehearsed on copies of real rows into which a known drift was put.

Windows of rows nobody touched say how often detectors cry for nothing; windows after an onset say which of them see
what, at which size, and how late. A task goes live only with a passed drill on record.

Windows are the version's own log where it is long enough, else the bundle's holdout: then half of its stretches are
learned from, and the rest is watched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from contracts.bundle import Bundle, FeatureSpec
from contracts.operations_policy import Monitoring
from contracts.task import LOWER_IS_BETTER, Task
from monitoring.array_summaries import summarised, watched
from monitoring.injected import KINDS, Injection, Target, find_target
from monitoring.log_frame import CHUNK, DECISION, LABEL, SCORE, in_canonical_order
from monitoring.quality import quality
from monitoring.report import Performance
from monitoring.usual import Usual, estimated_metric

LEAST_ROWS = 50
"""Of a window: a smaller one shows nothing but chance."""
_WINDOWS = 12
"""Windows that a holdout is cut into: half of them to learn from, half to watch."""
_MUST_BE_SEEN = ("shifted mean", "new category", "swapped units", "stuck sensor")
"""Kinds whose largest size no detector may miss. Whether a rotation or another mix of outcomes can be told from what
windows differ by anyway is a matter of the data: a drill says so, and does not fail for it."""
MAX_FALSE = 0.5
"""Share of rows of undrifted windows, `consecutive` long, of which the drift rule may speak."""
_MOST = 3
"""Windows before an onset, and after it."""
_SEED = 5


class Model(Protocol):
    """What scores changed rows."""

    def score(self, numbers: np.ndarray, texts: np.ndarray | None = None) -> np.ndarray:
        """float32 [N]."""
        ...


@dataclass(frozen=True, slots=True)
class Trial:
    """One kind of drift at one size."""

    kind: str
    size: float
    unit: str
    changed: tuple[str, ...]
    """Features that were changed; empty where outcomes or rows were."""
    seen_by: dict[str, int]
    """Detector to the number of the window after the onset that it spoke in first; 1 is at once."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DrillReport:
    """What a drill showed."""

    passed: bool
    reasons: tuple[str, ...]
    """Why it did not pass; or what to know of one that did."""
    source: str
    """log | holdout"""
    quick: bool
    """Only the largest size of each kind, without the domain classifier."""
    quiet: int = 0
    """Undrifted windows."""
    drifted: int = 0
    """Windows after an onset, in each trial. In the first one only the second half has drifted."""
    rows: int = 0
    """Of a window, at the least."""
    trials: tuple[Trial, ...] = ()
    false_alarms: dict[str, float] = field(default_factory=dict)
    """Detector to the share of undrifted windows (features and windows, where it is one of features) it spoke in."""
    not_applicable: tuple[str, ...] = ()
    """Kinds that these features have nothing for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"trials": [trial.to_dict() for trial in self.trials]}


def drift_drill(
    task: Task, bundle: Bundle, model: Model | None, *, log: pd.DataFrame | None = None, quick: bool = False
) -> DrillReport:
    """Put each kind of drift into copies of real rows, at several sizes, and see which detectors see it.

    Args:
        task: the policy; its thresholds are what is rehearsed.
        bundle: of the version that is to go live.
        model: scores changed rows; None leaves scores as they are.
        log: labelled rows of that version by chunk, as `rows_of_log` makes them; None: the bundle's holdout.
        quick: for a rehearsal within seconds.
    """
    specs = bundle.metadata.features
    reference = _rows_of_reference(bundle)
    source, learned, windows = _windows(task, reference, log)
    if len(windows) < 2 or learned is None:
        reason = f"{len(reference)} labelled rows of the holdout are too few to rehearse on: {_WINDOWS * LEAST_ROWS} do"
        return DrillReport(False, (reason,), source, quick)
    half = len(windows) // 2
    before, after = windows[:half][-_MOST:], windows[half:][:_MOST]
    return _Rehearsal(task, specs, learned, model, quick).held(source, before, after)


def rows_of_log(table: pa.Table, label: np.ndarray, numbers: np.ndarray, specs: Sequence[FeatureSpec]) -> pd.DataFrame:
    """Logged rows as a drill wants them.

    Args:
        table: rows of the prediction log with their vectors.
        label: of each row, NaN where it is not known: such rows are left out.
        numbers: the chunk of each row.
        specs: the model's inputs.
    """
    columns: dict[str, Any] = {CHUNK: numbers, SCORE: table["score"].to_numpy(), LABEL: label}
    columns |= {spec.name: table[f"feature.{spec.name}"].to_pandas() for spec in specs}
    frame = pd.DataFrame(columns)
    return frame[frame[LABEL].notna()].reset_index(drop=True)


def _rows_of_reference(bundle: Bundle) -> pd.DataFrame:
    table = bundle.reference()
    table = table.filter(table["label"].is_valid()).sort_by("event_timestamp")
    columns: dict[str, Any] = {
        SCORE: table["score"].cast(pa.float64()).to_numpy(),
        LABEL: table["label"].cast(pa.float64()).to_numpy(),
    }
    columns |= {spec.name: table[spec.name].to_pandas() for spec in bundle.metadata.features}
    return pd.DataFrame(columns)


def _windows(
    task: Task, reference: pd.DataFrame, log: pd.DataFrame | None
) -> tuple[str, pd.DataFrame | None, list[pd.DataFrame]]:
    """Where rows come from, what is learned from, and the windows to watch."""
    size = max(LEAST_ROWS, len(reference) // _WINDOWS)
    cut = reference.assign(**{CHUNK: np.arange(len(reference)) // size})
    whole = [rows.reset_index(drop=True) for _, rows in cut.groupby(CHUNK) if len(rows) == size]
    if log is not None:
        logged = [rows.reset_index(drop=True) for _, rows in log.groupby(CHUNK) if len(rows) >= LEAST_ROWS]
        if len(logged) >= _WINDOWS // 2 and len(whole) >= _WINDOWS // 2:
            return "log", pd.concat(whole, ignore_index=True), logged
    if len(whole) < _WINDOWS:
        return "holdout", None, []
    # Every other stretch would be all days against all nights where a stretch is half a day. In the order of Thue and
    # Morse (learn, watch, watch, learn, watch, learn, ...) no rhythm falls together with the halves.
    halves: tuple[list[pd.DataFrame], list[pd.DataFrame]] = ([], [])
    for i, rows in enumerate(whole):
        halves[i.bit_count() % 2].append(rows)
    return "holdout", pd.concat(halves[0], ignore_index=True), halves[1]


@dataclass(slots=True)
class _Heard:
    """What detectors said of windows."""

    alarms: set[tuple[str, int, str]] = field(default_factory=set)
    """Detector, window, and the feature where it is one of features."""
    figures: dict[tuple[str, int], float] = field(default_factory=dict)
    """Performance by how it was got and window."""

    def note(self, how: str, found: Mapping[int, Performance]) -> None:
        self.figures |= {(how, chunk): each.value for chunk, each in found.items() if each.value is not None}


class _Rehearsal:
    def __init__(
        self, task: Task, specs: Sequence[FeatureSpec], learned: pd.DataFrame, model: Model | None, quick: bool
    ) -> None:
        rules = task.monitoring
        least = int(learned.groupby(CHUNK).size().min())
        detectors = tuple(each for each in rules.multivariate if not (quick and each == "domain_classifier"))
        self._rules: Monitoring = rules.model_copy(update={"min_rows": least, "multivariate": detectors})
        self._task, self._specs, self._model, self._quick = task, specs, model, quick
        self._learned = summarised(learned, specs)
        self._features = watched(specs)
        self._usual = self._learn(self._features)
        self._target: Target = find_target(learned, specs, binary=task.kind == "binary")
        self._outcomes = learned.groupby(CHUNK)[LABEL].mean()
        self._metric = estimated_metric(task.success.metric)
        self._sign = -1 if self._metric in LOWER_IS_BETTER else 1

    def _learn(self, features: Sequence[FeatureSpec]) -> Usual:
        return Usual(self._learned, features, self._rules, self._task.success.metric)

    def held(self, source: str, before: Sequence[pd.DataFrame], after: Sequence[pd.DataFrame]) -> DrillReport:
        """Every kind at every size: what speaks in a drifted window and not in the same window as it was."""
        untouched = self._listen(self._numbered([*after, *before]), self._usual, self._features)
        trials, nothing = [], []
        for kind in KINDS:
            usual: Usual | None = None
            for size in kind.sizes[-1:] if self._quick else kind.sizes:
                changed, windows = self._inject(kind, size, after)
                if windows is None:
                    nothing.append(kind.kind)
                    break
                touched = [each for each in self._features if each.name.partition("[")[0] in changed]
                usual = usual or (self._learn(touched) if touched else self._usual)
                heard = self._listen(windows, usual, touched, labels_only=kind.needs_labels)
                trials.append(Trial(kind.kind, size, kind.unit, changed, self._seen(heard, untouched)))
        in_time = [*range(len(after), len(after) + len(before)), *range(len(after))]
        false_alarms = self._false_alarms(untouched, in_time)
        reasons = self._verdict(trials, false_alarms)
        return DrillReport(
            passed=not reasons,
            reasons=tuple(reasons or self._limits(list({trial.kind: trial for trial in trials}.values()))),
            source=source,
            quick=self._quick,
            quiet=len(before) + len(after),
            drifted=len(after),
            rows=min(len(each) for each in (*before, *after)),
            trials=tuple(trials),
            false_alarms=false_alarms,
            not_applicable=tuple(nothing),
        )

    def _inject(
        self, kind: Injection, size: float, after: Sequence[pd.DataFrame]
    ) -> tuple[tuple[str, ...], pd.DataFrame | None]:
        """Changed copies of the windows: the first from its middle on."""
        random, parts = np.random.default_rng(_SEED), []
        for i, window in enumerate(after):
            onset = len(window) // 2 if i == 0 and len(after) > 1 else 0
            late = kind.apply(window.iloc[onset:].reset_index(drop=True), self._target, size, random)
            if late is None:
                return (), None
            parts.append(pd.concat([window.iloc[:onset], self._scored(late, kind)], ignore_index=True))
        changed = [
            spec.place[0] if spec.place else spec.name
            for spec in self._specs
            if not kind.draws_rows
            and any(not part[spec.name].equals(window[spec.name]) for part, window in zip(parts, after, strict=True))
        ]
        return tuple(dict.fromkeys(changed)), self._numbered(parts)

    def _scored(self, rows: pd.DataFrame, kind: Injection) -> pd.DataFrame:
        if self._model is None or kind.needs_labels or kind.draws_rows:
            return rows  # the same vectors, and so the same scores
        numbers = [spec.name for spec in self._specs if spec.kind == "number"]
        texts = [spec.name for spec in self._specs if spec.kind == "text"]
        found = self._model.score(
            np.ascontiguousarray(rows[numbers].to_numpy(np.float64), np.float32),
            rows[texts].astype(object).where(rows[texts].notna(), "").to_numpy() if texts else None,
        )
        return rows.assign(**{SCORE: found.astype(np.float64)})

    def _numbered(self, windows: Sequence[pd.DataFrame]) -> pd.DataFrame:
        rows = pd.concat([each.assign(**{CHUNK: i}) for i, each in enumerate(windows)], ignore_index=True)
        return in_canonical_order(summarised(rows.assign(**{DECISION: 0}), self._specs))

    def _listen(
        self, windows: pd.DataFrame, usual: Usual, features: Sequence[FeatureSpec], *, labels_only: bool = False
    ) -> _Heard:
        """What every detector says of every window."""
        heard = _Heard()
        if not labels_only:
            for chunk, (drifts, score) in usual.drift(windows).items():
                heard.alarms |= {("univariate", chunk, each.column) for each in drifts if each.drifted}
                heard.alarms |= {("score", chunk, "")} if score.drifted else set()
            for chunk, found in self._usual.together(windows).items():
                heard.alarms |= {(each.column, chunk, "") for each in found if each.drifted}
            rules = self._rules
            for chunk, checked in quality(self._learned, windows, features, self._usual.repeats).items():
                heard.alarms |= {
                    ("quality", chunk, q.feature)
                    for q in checked
                    if q.unseen >= rules.max_unseen or q.repeated >= rules.max_repeated or q.vanished
                }
            heard.note("estimated", self._usual.estimate(windows))
        heard.note("realized", self._usual.realize(windows, self._metric))
        for number, labels in windows.groupby(CHUNK)[LABEL]:
            by_chance = float(self._learned[LABEL].std()) / len(labels) ** 0.5
            spread = max(float(self._outcomes.std(ddof=0)), by_chance)
            if abs(float(labels.mean()) - float(self._outcomes.mean())) > 3 * spread:
                heard.alarms.add(("outcomes", int(str(number)), ""))
        return heard

    def _seen(self, heard: _Heard, untouched: _Heard) -> dict[str, int]:
        """Detectors that the drift alone made speak, and the window each spoke in first."""
        spoke = [(detector, chunk) for detector, chunk, _ in heard.alarms - untouched.alarms]
        for (detector, chunk), value in heard.figures.items():
            was = untouched.figures.get((detector, chunk))
            if was is not None and self._sign * (was - value) > self._task.monitoring.estimator_tolerance:
                spoke.append((detector, chunk))
        return {name: min(chunk for each, chunk in spoke if each == name) + 1 for name in sorted(dict(spoke))}

    def _false_alarms(self, untouched: _Heard, windows: Sequence[int]) -> dict[str, float]:
        """How often each detector spoke of undrifted windows, given in order of time; the drift rule of as many in a
        row as the task wants."""
        alarms, features = untouched.alarms, len(self._features)
        drifted = [sum(1 for name, at, _ in alarms if (name, at) == ("univariate", window)) for window in windows]
        together = {window for name, window, _ in alarms if name in self._rules.multivariate}
        rule = [
            count / features >= self._rules.drift_share or window in together
            for window, count in zip(windows, drifted, strict=True)
        ]
        row = min(self._rules.consecutive, len(rule))
        rows = [all(rule[at : at + row]) for at in range(len(rule) - row + 1)]
        found = {"univariate": sum(drifted) / (features * len(windows)), "drift rule": float(np.mean(rows))}
        for name in ("score", "outcomes", *self._rules.multivariate):
            found[name] = sum(1 for each, _, _ in alarms if each == name) / len(windows)
        return found

    def _verdict(self, trials: Sequence[Trial], false_alarms: Mapping[str, float]) -> list[str]:
        largest = {trial.kind: trial for trial in trials}
        reasons = [
            f"{kind} of {largest[kind].size:g} {largest[kind].unit} was seen by no detector"
            for kind in _MUST_BE_SEEN
            if kind in largest and not largest[kind].seen_by
        ]
        if "realized" not in largest["concept shift"].seen_by:
            reasons.append("concept shift was not seen in realized performance, the only place where it shows")
        share = false_alarms["drift rule"]
        if share > MAX_FALSE:
            reasons.append(f"the drift rule spoke {share:.0%} of the time without any drift, {MAX_FALSE:.0%} may")
        return reasons

    def _limits(self, trials: Sequence[Trial]) -> list[str]:
        unseen = {trial.kind: trial for trial in trials if not trial.seen_by and trial.kind not in _MUST_BE_SEEN}
        told = [f"{kind} of {trial.size:g} {trial.unit} was seen by no detector" for kind, trial in unseen.items()]
        return [*told, "concept shift leaves inputs and scores as they are: nothing sees it before labels come"]
