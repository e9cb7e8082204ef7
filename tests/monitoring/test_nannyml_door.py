"""The door gives NannyML's own figures, quietly, and only when somebody opens it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from contracts.bundle import FeatureSpec
from contracts.locations import Locations
from contracts.operations_policy import Monitoring
from contracts.predictions import COLUMNS, PredictionRow, append, open_segment
from contracts.state import open_state
from contracts.task import load_task
from monitoring import nannyml_door as door
from monitoring.log_frame import reference_frame, to_frame
from monitoring.results import monitoring_figures, read_figures
from tests.monitoring.conftest import START, make_bundle

NUMBERS = ["car_value", "debt_to_income_ratio", "driver_tenure"]
TEXTS = ["salary_range", "size_of_downpayment"]
SPECS = [*(FeatureSpec(name, "number") for name in NUMBERS), *(FeatureSpec(name, "text") for name in TEXTS)]
METHODS = {name: ("jensen_shannon", name in TEXTS) for name in NUMBERS + TEXTS}
HOW = {"metric": "roc_auc", "score": "y_pred_proba", "label": "repaid"}
DAYS = 8


@pytest.fixture(scope="module")
def loans() -> tuple[pd.DataFrame, pd.DataFrame]:
    """NannyML's car loans: whole days of reference and of analysis, rounded to float32 as a model's inputs are."""
    import nannyml

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference, analysis, target = nannyml.load_synthetic_car_loan_dataset()
    analysis = analysis.merge(target, on="id")
    frames = []
    for frame in (reference, analysis):
        frame = frame.assign(timestamp=pd.to_datetime(frame["timestamp"], utc=True))
        frame[NUMBERS] = frame[NUMBERS].astype(np.float32).astype(np.float64)
        first, last = frame["timestamp"].min().ceil("1D"), frame["timestamp"].max().floor("1D")
        frames.append(frame[(frame["timestamp"] >= first) & (frame["timestamp"] < last)].reset_index(drop=True))
    reference, analysis = frames
    end = analysis["timestamp"].min().floor("1D") + DAYS * pd.Timedelta("1D")
    recent = analysis[analysis["timestamp"] < end]
    return reference[reference["timestamp"] < reference["timestamp"].min() + pd.Timedelta("40D")], recent


@pytest.fixture(autouse=True)
def quiet_nannyml() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def direct_drift(reference: pd.DataFrame, analysis: pd.DataFrame) -> pd.DataFrame:
    import nannyml

    calculator = nannyml.UnivariateDriftCalculator(
        column_names=NUMBERS + TEXTS,
        timestamp_column_name="timestamp",
        continuous_methods=["jensen_shannon"],
        categorical_methods=["jensen_shannon"],
        chunk_period="D",
    )
    return calculator.fit(reference).calculate(analysis).filter(period="analysis").to_df()


def direct_performance(reference: pd.DataFrame, analysis: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    import nannyml

    how = {
        "metrics": ["roc_auc"],
        "y_pred_proba": "y_pred_proba",
        "y_true": "repaid",
        "problem_type": "classification_binary",
        "timestamp_column_name": "timestamp",
        "chunk_period": "D",
    }
    estimated = nannyml.CBPE(**how).fit(reference).estimate(analysis)
    realized = nannyml.PerformanceCalculator(**how).fit(reference).calculate(analysis)
    return estimated.filter(period="analysis").to_df(), realized.filter(period="analysis").to_df()


def numbered(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**{door.CHUNK: frame["timestamp"].dt.floor("1D").astype("int64")})


def test_the_door_gives_nannymls_drift_and_thresholds(loans: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    reference, analysis = loans
    figures = door.UnivariateDrift(numbered(reference), METHODS).of(numbered(analysis))
    theirs = direct_drift(reference, analysis)
    assert len(figures) == DAYS * len(NUMBERS + TEXTS)
    for name in NUMBERS + TEXTS:
        ours = sorted((f for f in figures if f.name == name), key=lambda f: f.chunk)
        assert [f.value for f in ours] == theirs[(name, "jensen_shannon", "value")].tolist()
        assert [f.upper_threshold for f in ours] == theirs[(name, "jensen_shannon", "upper_threshold")].tolist()
        assert [f.alert for f in ours] == theirs[(name, "jensen_shannon", "alert")].tolist()


def test_the_door_gives_nannymls_estimates_and_realized_performance(
    loans: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    reference, analysis = (numbered(frame) for frame in loans)
    estimated, realized = direct_performance(*loans)
    ours = door.EstimatedPerformance(reference, **HOW).of(analysis)
    assert [f.value for f in ours] == estimated[("roc_auc", "value")].tolist()
    assert [f.low for f in ours] == estimated[("roc_auc", "lower_confidence_boundary")].tolist()
    assert [f.high for f in ours] == estimated[("roc_auc", "upper_confidence_boundary")].tolist()
    assert [f.lower_threshold for f in ours] == estimated[("roc_auc", "lower_threshold")].tolist()
    truth = door.RealizedPerformance(reference, **HOW).of(analysis)
    assert [f.value for f in truth] == realized[("roc_auc", "value")].tolist()
    assert [f.alert for f in truth] == realized[("roc_auc", "alert")].tolist()


def test_stored_figures_equal_nannyml_called_directly(loans: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path) -> None:
    """The whole way: prediction log, spine, bundle and monitor against three calls of NannyML on the same rows."""
    from monitoring.monitor import monitor

    reference, analysis = loans
    project = _loans_project(tmp_path, reference, analysis)
    task = load_task(project / "tasks" / "loans.toml")
    locations = Locations(project / "data")
    engine = open_state(locations.state_url)
    table = pq.read_table(project / "reference.parquet")
    bundle = make_bundle(project / "bundle", table, SPECS, "loans")
    as_of = analysis["timestamp"].max().to_pydatetime() + 5 * pd.Timedelta("1D").to_pytimedelta()
    report = monitor(task, locations, engine, as_of=as_of, bundle=bundle, store=_Unchanged())
    assert [chunk.state for chunk in report.chunks] == ["judged"] * DAYS

    drift = direct_drift(reference, analysis)
    estimated, realized = direct_performance(reference, analysis)
    expected = {("drift", name): drift[(name, "jensen_shannon", "value")] for name in NUMBERS + TEXTS}
    expected |= {("estimated", "roc_auc"): estimated[("roc_auc", "value")]}
    expected |= {("realized", "roc_auc"): realized[("roc_auc", "value")]}
    stored = read_figures(engine, "loans")
    for (kind, name), theirs in expected.items():
        ours = [row["value"] for row in stored if (row["kind"], row["name"]) == (kind, name)]
        np.testing.assert_allclose(ours, theirs.astype(float), rtol=1e-12, err_msg=f"{kind} {name}")
    thresholds = {row["name"]: row["threshold"] for row in stored if row["kind"] == "drift"}
    for name in NUMBERS + TEXTS:
        assert thresholds[name] == pytest.approx(drift[(name, "jensen_shannon", "upper_threshold")].iloc[0], rel=1e-12)
    with engine.connect() as connection:
        kinds = set(connection.execute(select(monitoring_figures.c.kind)).scalars())
    assert {"drift", "score_drift", "estimated", "realized", "missing", "together", "cost"} <= kinds


def test_average_precision_is_estimated_too(loans: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    reference, analysis = (numbered(frame) for frame in loans)
    how = {"metric": "average_precision", "score": "y_pred_proba", "label": "repaid"}
    guessed = door.EstimatedPerformance(reference, **how).of(analysis)
    truth = door.RealizedPerformance(reference, **how).of(analysis)
    assert np.mean([abs(a.value - b.value) for a, b in zip(guessed, truth, strict=True)]) < 0.02


def test_a_column_without_reference_values_has_no_distance() -> None:
    frame = pd.DataFrame({"a": np.arange(30.0), "empty": np.full(30, np.nan), door.CHUNK: np.arange(30) // 10})
    number = ("jensen_shannon", False)
    figures = door.UnivariateDrift(frame, {"a": number, "empty": number}).of(frame)
    assert {figure.name for figure in figures} == {"a"}
    assert door.UnivariateDrift(frame, {"empty": number}).of(frame) == []


def test_a_chunk_without_values_has_no_distance_and_no_alert() -> None:
    frame = pd.DataFrame({"a": np.arange(30.0), door.CHUNK: np.arange(30) // 10})
    later = pd.DataFrame({"a": np.full(10, np.nan), door.CHUNK: 7})
    (figure,) = door.UnivariateDrift(frame, {"a": ("jensen_shannon", False)}).of(later)
    assert (figure.chunk, figure.value, figure.alert) == (7, None, False)


def test_the_door_is_quiet_and_leaves_the_environment_alone(tmp_path: Path) -> None:
    """A stray .env beside the program must not reach the process; nothing may be printed; telemetry stays off."""
    program = """
import os, warnings
warnings.simplefilter("error", UserWarning)
before = dict(os.environ)
import monitoring.nannyml_door as door
import numpy as np, pandas as pd
after = dict(os.environ)
assert after.pop("NML_DISABLE_USAGE_LOGGING") == "1"
assert after == before, set(after.items()) ^ set(before.items())
frame = pd.DataFrame({"a": np.arange(40.0), "s": np.linspace(0, 1, 40), "y": [0, 1] * 20})
frame[door.CHUNK] = np.arange(40) // 20
door.UnivariateDrift(frame, {"a": ("jensen_shannon", False)}).of(frame)
door.EstimatedPerformance(frame, metric="roc_auc", score="s", label="y").of(frame)
frame["b"] = frame["a"] ** 2
door.Reconstruction(frame, ["a", "b"], []).of(frame)
door.DomainClassifier(frame, ["a", "b"], []).of(frame)
"""
    (tmp_path / ".env").write_text("STRAY=1\n")
    environment = {k: v for k, v in os.environ.items() if k != "NML_DISABLE_USAGE_LOGGING"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_of_monitoring_imports_nannyml_or_feast_by_itself() -> None:
    program = """
import sys
import monitoring.monitor, monitoring.decision, monitoring.alerts, monitoring.results, monitoring.skew
heavy = {"nannyml", "feast", "lightgbm", "sklearn", "mlflow", "ray"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True, timeout=120)


def test_a_log_and_a_reference_of_the_same_rows_make_the_same_frame(loans: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """0.1 as float64 in the reference and as float32 in the log is one value, or every feature would have drifted."""
    rows = loans[0].head(200)
    stamps = pa.array(rows["timestamp"].astype("datetime64[us, UTC]"), pa.timestamp("us", tz="UTC"))
    values = pa.array(rows["debt_to_income_ratio"] + 1e-12)
    table = {"event_timestamp": stamps, "score": pa.array(rows["y_pred_proba"])}
    reference = pa.table(table | {"label": pa.array(rows["repaid"]), "debt_to_income_ratio": values})
    empty = {name: pa.nulls(200, kind.type) for name, kind in zip(COLUMNS.names, COLUMNS, strict=True)}
    log = pa.table(empty | table | {"feature.debt_to_income_ratio": values.cast(pa.float32())})
    ours, _ = to_frame(log, [SPECS[1]], chunks=np.zeros(200, np.int64))
    theirs = reference_frame(reference, [SPECS[1]], rules=Monitoring(performance_floor=0.7))
    assert sorted(ours["debt_to_income_ratio"]) == sorted(theirs["debt_to_income_ratio"])


class _Unchanged:
    """A store whose service has no features: this test is not about skew."""

    def list_feature_services(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="loans_v1", feature_view_projections=[])]

    def list_batch_feature_views(self) -> list[SimpleNamespace]:
        return []

    list_stream_feature_views = list_on_demand_feature_views = list_batch_feature_views

    def get_historical_features(self, entity_df: pa.Table, features: object) -> SimpleNamespace:
        return SimpleNamespace(to_arrow=lambda: entity_df)


def _loans_project(root: Path, reference: pd.DataFrame, analysis: pd.DataFrame) -> Path:
    (root / "tasks").mkdir()
    (root / "tasks" / "loans.sql").write_text("select * from loans")
    (root / "tasks" / "loans.toml").write_text(
        """
name = "loans"
kind = "binary"
feature_repo = "../features"
feature_service = "loans_v1"
[spine]
sql = "loans.sql"
tables = { loans = "../loans.parquet" }
id = "loan"
event_timestamp = "asked_at"
keys = ["loan"]
label = "repaid"
label_known_at = "known_at"
[success]
metric = "roc_auc"
floor = 0.6
cost = { false_alarm = 1, missed = 5 }
[budget]
p99_ms = 50
requests_per_second = 10
[monitoring]
chunk = "1d"
min_rows = 100
performance_floor = 0.7
"""
    )
    both = pd.concat([reference, analysis])
    stamps = pa.array(both["timestamp"].astype("datetime64[us, UTC]"), pa.timestamp("us", tz="UTC"))
    spine = {"loan": pa.array(both["id"].astype(str)), "asked_at": stamps, "repaid": pa.array(both["repaid"])}
    later = pa.array((both["timestamp"] + pd.Timedelta("1D")).astype("datetime64[us, UTC]"))
    pq.write_table(pa.table(spine | {"known_at": later.cast(stamps.type)}), root / "loans.parquet")
    usual = pa.Table.from_pandas(reference[[*NUMBERS, *TEXTS, "y_pred_proba", "repaid"]], preserve_index=False)
    usual = usual.rename_columns([*NUMBERS, *TEXTS, "score", "label"])
    asked = pa.array(reference["timestamp"].astype("datetime64[us, UTC]"), stamps.type)
    pq.write_table(usual.append_column("event_timestamp", asked), root / "reference.parquet")
    segment = open_segment(root / "data" / "predictions" / "loans" / "a.sqlite", [(s.name, s.kind) for s in SPECS])
    rows = [
        PredictionRow(
            request_id=str(row.id),
            position=0,
            variant="champion",
            version=3,
            case_id=str(row.id),
            event_timestamp=row.timestamp.to_pydatetime(),
            answered_at=START,
            inputs={"loan": str(row.id)},
            numbers=np.array([getattr(row, name) for name in NUMBERS], np.float32),
            texts=[getattr(row, name) for name in TEXTS],
            view_times={},
            score=row.y_pred_proba,
            decision=1,
            latency_ms=1.0,
        )
        for row in analysis.itertuples()
    ]
    append(segment, rows)
    segment.close()
    return root


def test_reconstruction_and_classifier_are_nannymls_own(loans: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    import nannyml

    reference, analysis = (numbered(frame) for frame in loans)
    ours = door.Reconstruction(reference, NUMBERS, TEXTS).of(analysis)
    how = {"timestamp_column_name": "timestamp", "chunk_period": "D"}
    direct = nannyml.DataReconstructionDriftCalculator(column_names=NUMBERS + TEXTS, **how).fit(loans[0])
    theirs = direct.calculate(loans[1]).filter(period="analysis").to_df()["reconstruction_error"]
    np.testing.assert_allclose([f.value for f in ours], theirs["value"].astype(float), rtol=1e-9)
    assert ours[0].upper_threshold == pytest.approx(theirs["upper_threshold"].iloc[0], rel=1e-9)

    few, week = reference.iloc[::10], analysis.iloc[::10]
    ours = door.DomainClassifier(few, NUMBERS, TEXTS).of(week)
    direct = nannyml.DomainClassifierCalculator(
        feature_column_names=NUMBERS + TEXTS,
        treat_as_categorical=TEXTS,
        cv_folds_num=door.FOLDS,
        hyperparameters=door.CLASSIFIER,
        threshold=nannyml.thresholds.StandardDeviationThreshold(),
        **how,
    ).fit(loans[0].iloc[::10])
    theirs = direct.calculate(loans[1].iloc[::10]).filter(period="analysis").to_df()["domain_classifier_auroc"]
    np.testing.assert_allclose([f.value for f in ours], theirs["value"].astype(float), rtol=1e-9)
    assert [f.alert for f in ours] == (theirs["value"] > theirs["upper_threshold"]).tolist()


def test_a_regressions_estimate_is_nannymls_own() -> None:
    """Its car prices: DLE with the same learner, the same chunks."""
    import nannyml

    reference, analysis, _ = nannyml.load_synthetic_car_price_dataset()
    columns = ["car_age", "km_driven", "price_new", "accident_count", "door_count"]
    frames = []
    for frame in (reference.head(6000), analysis.head(3000)):
        stamps = pd.to_datetime(frame["timestamp"], utc=True)
        numbers = np.arange(len(frame)) // 1000
        frames.append(frame.assign(timestamp=stamps, **{door.CHUNK: numbers}))
    estimator = door.EstimatedErrors(
        frames[0], metric="mae", score="y_pred", label="y_true", numbers=columns, texts=["fuel", "transmission"]
    )
    ours = estimator.of(frames[1])
    direct = nannyml.DLE(
        feature_column_names=[*columns, "fuel", "transmission"],
        y_pred="y_pred",
        y_true="y_true",
        metrics=["mae"],
        chunk_size=1000,
        hyperparameters=door.ERROR_LEARNER,
    )
    theirs = direct.fit(frames[0]).estimate(frames[1]).filter(period="analysis").to_df()
    np.testing.assert_allclose([f.value for f in ours], theirs[("mae", "value")].astype(float), rtol=1e-9)
    np.testing.assert_allclose([f.high for f in ours], theirs[("mae", "upper_confidence_boundary")], rtol=1e-9)


def test_a_boolean_is_watched_by_its_share() -> None:
    from monitoring.usual import drift_method

    assert drift_method(FeatureSpec("paid", "number", "bool")) == ("l_infinity", True)
    assert drift_method(FeatureSpec("visits", "number", "int64")) == ("jensen_shannon", False)
    random = np.random.default_rng(1)
    usual = (
        pd.DataFrame({"paid": random.random(3000) < 0.3}).astype(float).assign(**{door.CHUNK: np.arange(3000) // 300})
    )
    later = pd.DataFrame({"paid": np.repeat([1.0, 0.0], [150, 150]), door.CHUNK: 99})
    [found] = door.UnivariateDrift(usual, {"paid": ("l_infinity", True)}).of(later)
    assert found.value == pytest.approx(0.5 - usual["paid"].mean(), abs=1e-9)
    assert found.alert
