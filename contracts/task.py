"""A task file, parsed into a frozen `Task`: the whole policy, so that no stage invents a number."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from contracts.duration import Duration
from contracts.errors import SkewlessError
from contracts.mistakes import explain, nearest
from contracts.operations_policy import Monitoring, Retraining, Rollout, Share
from contracts.serving_policy import Batch, Degradation, Mode, Section, Serving, serving_mode
from contracts.task_search import Search

METRICS = {
    "binary": ("roc_auc", "average_precision", "log_loss", "brier"),
    "regression": ("mae", "rmse", "pinball"),
}
"""Primary metrics by kind of task."""
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "mae", "rmse", "pinball"})
TASK_NAME = r"^[a-z][a-z0-9_]*$"
"""What a task may be called."""
_PRICES = {"binary": ("false_alarm", "missed"), "regression": ("too_high", "too_low")}
"""What `success.cost` must say, by kind of task."""


class TaskError(SkewlessError, ValueError):
    """A task file that cannot be used."""


class Spine(Section):
    """Who is predicted, when, and what came of it: the rows that training, labels and replays are made of."""

    sql: Path
    """A file beside the task with a DuckDB query over `tables`; its columns are named below."""
    tables: dict[str, Path]
    """Table name to a Parquet file or folder, relative to the task file."""
    id: str
    """Column that names the predicted case; unique."""
    event_timestamp: str
    """Column with the instant at which the prediction is asked for."""
    keys: tuple[str, ...] = Field(min_length=1)
    """Join keys of the feature service's entities."""
    request_fields: tuple[str, ...] = ()
    """Columns an application sends with the request (inputs of on-demand views)."""
    label: str
    """Outcome column; null where there is none."""
    label_known_at: str
    """Instant at which the label could first be read; null where there is none."""


class Cost(Section):
    """What being wrong costs, in the units of the business: two prices, which ones is a matter of the task's kind."""

    false_alarm: float = Field(default=0, ge=0)
    """Binary: acting where nothing was going to happen."""
    missed: float = Field(default=0, ge=0)
    """Binary: not acting where it did."""
    too_high: float = Field(default=0, ge=0)
    """Regression: each unit by which a value is predicted above the truth."""
    too_low: float = Field(default=0, ge=0)
    """Regression: each unit by which it is predicted below."""
    currency: str = "USD"
    """For people; nothing is converted."""


class Success(Section):
    """What the model is for."""

    metric: str
    """The primary metric, of those the kind of task has: what gates, slices and monitoring judge by."""
    floor: float
    """The primary metric a version must reach on the holdout."""
    cost: Cost
    """What a wrong decision costs; the threshold is chosen for the least of it."""


class Budget(Section):
    """What an answer may take, at the traffic to be expected."""

    p99_ms: float = Field(gt=0)
    """Milliseconds within which 99 of 100 requests are answered; also decides how the task is served."""
    requests_per_second: float = Field(gt=0)
    """At the busiest time."""


class Fairness(Section):
    """Slices whose primary metric is compared."""

    slices: tuple[str, ...] = ()
    """Spine columns."""
    max_gap: float = Field(default=0.15, gt=0)
    """Largest tolerated difference between the best and the worst slice."""
    min_rows: int = Field(default=200, ge=1)
    """Slices with fewer holdout rows are reported, not judged."""


class Training(Section):
    """How a version is made."""

    learner: Literal["auto", "lightgbm", "sklearn_linear", "sklearn_boosting", "torch_sequence"] = "auto"
    """"auto" leaves it to the decision rules; a name overrules them."""
    threads: int = Field(default=1, ge=1)
    """A fit may use; part of what makes a model's bytes, so it is pinned and not taken from the machine."""
    array_places: int = Field(default=16, ge=1, le=512)
    """How many of an array feature's last values the model reads."""
    window: Duration = timedelta(days=90)
    """How far before the cutoff the spine reaches."""
    validation: Duration = timedelta(days=10)
    """Part before the holdout, for early stopping, calibration and the threshold."""
    holdout: Duration = timedelta(days=14)
    """The last part before the cutoff; no fit ever sees it."""
    seed: int = 7
    """Of everything that is drawn; the same seed and data give the same bytes."""
    params: dict[str, int | float | str | bool] = Field(default_factory=dict)
    """Passed to the learner over its defaults."""


class Audit(Section):
    """What the training frame is checked for before anything is fitted; a blocking finding stops the training."""

    max_missing: float = Field(default=0.95, gt=0, le=1)
    """Share of rows without a value beyond which a feature is a warning."""
    missing_change: Share = 0.3
    """Change of that share towards the end of the window beyond which it is a warning."""
    max_categories: int = Field(default=1000, ge=2)
    """Different texts of one feature beyond which it is a warning."""
    near_duplicate: float = Field(default=0.999, gt=0, le=1)
    """Rank correlation of two features, either sign, from which one of them is a warning."""
    perfect_auc: float = Field(default=0.98, gt=0.5, le=1)
    """ROC AUC of one feature alone from which it is taken for the label in disguise: blocking."""
    vanishing_auc: float = Field(default=0.75, gt=0.5, le=1)
    """ROC AUC of one feature alone from which it must keep its power when read `shift` earlier: else blocking."""
    vanishing_keeps: Share = 0.5
    """Share of its power (ROC AUC above 0.5) that such a feature must keep."""
    shift: Duration = timedelta(days=1)
    """How much earlier features are read to see whether their power stays."""
    stale_after: dict[str, Duration] = Field(default_factory=dict)
    """View to the age at the cutoff beyond which its newest source row blocks. For a view that is not named: twice
    its TTL, its longest window, or ten times the longest gap seen in the training window, the first that it has."""
    late_after: Duration = timedelta(days=1)
    """Time between an event and its being known beyond which a source row counts as late."""
    max_late: Share = 0.05
    """Share of late rows beyond which a view's source is a warning."""
    min_coverage: Share = 0.5
    """Share of spine rows with any feature of a view below which the view is a warning; none at all is blocking."""
    accepted: tuple[Annotated[str, Field(pattern=r"^[a-z_]+:.+$")], ...] = ()
    """Blocking findings a person has looked into and accepts, as "rule:subject"; they become warnings."""


class Gates(Section):
    """What a version must show before it may reach anybody."""

    min_holdout_rows: int = Field(default=1000, ge=1)
    """Fewer labelled holdout rows prove nothing."""
    champion_margin: float = Field(default=0.005, ge=0)
    """How much worse than the champion the primary metric may be, beyond chance."""
    baseline_margin: float = Field(default=0.02, ge=0)
    """How much better than the naive baseline it must be."""
    coverage_tolerance: float = Field(default=0.05, gt=0, lt=1)
    """Regression: how far the share of outcomes at or below a predicted quantile may be from its level."""
    parity_tolerance: float = Field(default=1e-4, gt=0)
    """Largest difference between packaged and native scores; relative for a regression's values beyond 1."""
    latency_share: float = Field(default=0.2, gt=0, le=1)
    """Share of the p99 budget that the packaged model alone may use for one row."""


class Task(Section):
    """One prediction task. Load it with `load_task`; paths are absolute then."""

    name: str = Field(pattern=TASK_NAME)
    """The task's own name: lower case, as in its file name, its experiment and its endpoint."""
    kind: Literal["binary", "regression"]
    """What is predicted: "binary" is the probability of one outcome of two, "regression" a number."""
    quantiles: tuple[Share, ...] = ()
    """Regression: levels predicted beside the value, rising."""
    description: str = ""
    """One sentence for people."""
    default: bool = False
    """Whether a command that names no task means this one; of use where a project has several."""
    feature_repo: Path
    """A Feast repository (the folder with `feature_store.yaml`), relative to the task file."""
    feature_service: str
    """The feature service in it that the model reads."""
    spine: Spine
    """Who is predicted, when, and what came of it."""
    success: Success
    """What the model is for."""
    budget: Budget
    """What an answer may take."""
    fairness: Fairness = Fairness()
    """Groups that must be served alike."""
    training: Training = Training()
    """How a version is made."""
    search: Search = Search()
    """Hyperparameters looked for before the fit, within the training part alone."""
    audit: Audit = Audit()
    """What its data is checked for first."""
    gates: Gates = Gates()
    """What it must show on the holdout."""
    rollout: Rollout = Rollout()
    """How it climbs."""
    serving: Serving = Serving()
    """What may be asked."""
    degradation: Degradation = Degradation()
    """What it is while the online store is away."""
    batch: Batch = Batch()
    """How far ahead its answers are computed, if they are."""
    monitoring: Monitoring
    """How it is watched."""
    retraining: Retraining = Retraining()
    """When it is made again."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = METRICS[self.kind]
        if self.success.metric not in known:
            near = nearest(self.success.metric, known)
            raise ValueError(f"success.metric {self.success.metric!r} is not one of {', '.join(known)}{near}")
        self._check_prices()
        self._check_quantiles()
        stray = [key for key in self.serving.refuse_unknown if key not in self.spine.keys]
        if stray:
            near = nearest(stray[0], self.spine.keys)
            raise ValueError(f"serving.refuse_unknown names {stray[0]!r}, which is not in spine.keys{near}")
        if list(self.rollout.canary_steps) != sorted(set(self.rollout.canary_steps)):
            raise ValueError(f"rollout.canary_steps must rise, got {list(self.rollout.canary_steps)}")
        for name in ("horizon", "good_for"):
            if getattr(self.batch, name) < self.batch.every:
                raise ValueError(f"batch.{name} must be at least batch.every: cases between two jobs have no answer")
        rows = self.monitoring.chunk_rows
        if rows is not None and rows < self.monitoring.min_rows:
            raise ValueError(f"monitoring.chunk_rows is {rows}: less than monitoring.min_rows, nothing would be judged")
        if self.training.validation + self.training.holdout >= self.training.window:
            raise ValueError("training.window must be longer than training.validation and training.holdout together")
        return self

    def _check_prices(self) -> None:
        given, wanted = self.success.cost.model_fields_set - {"currency"}, _PRICES[self.kind]
        for name in wanted:
            if name not in given:
                raise ValueError(f"success.cost.{name} is missing; a {self.kind} task has {' and '.join(wanted)}")
        for name in sorted(given - set(wanted)):
            raise ValueError(f"success.cost.{name} is no price of a {self.kind} task, which has {' and '.join(wanted)}")

    def _check_quantiles(self) -> None:
        if self.quantiles and self.kind != "regression":
            raise ValueError(f"quantiles are for a regression task; this one is {self.kind}")
        if list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles must rise, got {list(self.quantiles)}")
        if self.success.metric == "pinball" and not self.quantiles:
            raise ValueError("success.metric 'pinball' is a loss of quantiles, and the task names none")

    @property
    def serving_mode(self) -> tuple[Mode, str]:
        """How it is served, and why."""
        return serving_mode(self.serving.mode, self.budget.p99_ms)

    def is_better(self, a: float, b: float) -> bool:
        """Whether primary metric `a` beats `b`."""
        return a < b if self.success.metric in LOWER_IS_BETTER else a > b

    def fingerprint_data(self) -> dict[str, Any]:
        """The task as plain JSON without machine paths: what a bundle keeps as "task as trained"."""
        data = self.model_dump(mode="json", exclude={"feature_repo": True, "spine": {"sql", "tables"}})
        data["spine"]["sql"] = self.spine.sql.read_text()
        return data


def load_task(path: Path) -> Task:
    """Parse and check a task file.

    Raises:
        TaskError: the file is missing, is not TOML, or breaks a rule; it names field, value, rule and nearest name.
    """
    if not path.is_file():
        found = sorted(p.stem for p in path.parent.glob("*.toml"))
        raise TaskError(
            f"Task {path.stem!r} not found: no file {path}.",
            hint=f"tasks here: {', '.join(found) or 'none'}{nearest(path.stem, found) or '.'}",
        )
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TaskError(f"Task file {path} is not valid TOML: {error}.", hint="fix the line named above.") from error
    try:
        task = Task.model_validate(raw)
    except ValidationError as error:
        raise TaskError(
            f"Task file {path} is wrong:\n" + "\n".join(explain(error, Task)), hint="fix the fields above."
        ) from error
    base = path.parent
    tables = {name: (base / where).resolve() for name, where in task.spine.tables.items()}
    spine = task.spine.model_copy(update={"sql": (base / task.spine.sql).resolve(), "tables": tables})
    if not spine.sql.is_file():
        raise TaskError(
            f"Task file {path}: spine.sql names {spine.sql}, which does not exist.", hint="create it or fix the path."
        )
    return task.model_copy(update={"spine": spine, "feature_repo": (base / task.feature_repo).resolve()})
