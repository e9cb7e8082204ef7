"""A task that predicts a number is answered through the same endpoint, with its value and quantiles, and logged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from onnx import TensorProto, helper

from contracts.bundle import load_bundle, write_bundle

ROW = {
    "parcel": "p1",
    "depot_id": "north",
    "courier_id": 7,
    "ready_at": "2024-03-05T10:00:00Z",
    "weight": 2.5,
    "pieces": 3,
    "fragile": False,
    "label": "glass",
}


def values(numbers: int, texts: int) -> bytes:
    """Answers every row with 12.5 and the quantiles 4 and 30, whatever its features."""
    value = helper.make_tensor_value_info

    def constant(name: str, content: list[float]) -> Any:
        return helper.make_tensor(name, TensorProto.FLOAT, [len(content)], content)

    nodes = [
        helper.make_node("IsNaN", ["numbers"], ["null"]),
        helper.make_node("Where", ["null", "zero", "zero"], ["nothing"]),
        helper.make_node("ReduceSum", ["nothing", "axes"], ["flat"], keepdims=0),
        helper.make_node("ReduceSum", ["nothing", "axes"], ["column"], keepdims=1),
        helper.make_node("Add", ["flat", "value"], ["score"]),
        helper.make_node("Add", ["column", "levels"], ["quantiles"]),
    ]
    inputs = [
        value("numbers", TensorProto.FLOAT, [None, numbers]),
        value("texts", TensorProto.STRING, [None, texts]),
    ]
    outputs = [value("score", TensorProto.FLOAT, [None]), value("quantiles", TensorProto.FLOAT, [None, 2])]
    kept = [constant("zero", [0.0]), constant("value", [12.5]), constant("levels", [4.0, 30.0])]
    kept.append(helper.make_tensor("axes", TensorProto.INT64, [1], [1]))
    graph = helper.make_graph(nodes, "values", inputs, outputs, kept)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    content: bytes = made.SerializeToString()
    return content


@pytest.fixture
def minutes(couriers: Any) -> Any:
    """The couriers' project, its task asking for a number; version 1 is deployed."""
    path = couriers.root / "tasks" / "parcel_late.toml"
    path.write_text(
        path.read_text()
        .replace('kind = "binary"', 'kind = "regression"\nquantiles = [0.1, 0.9]')
        .replace('metric = "roc_auc"', 'metric = "mae"')
        .replace("false_alarm", "too_high")
        .replace("missed", "too_low")
    )
    return couriers


def bundle(couriers: Any, name: str) -> Path:
    plain = load_bundle(couriers.bundle(f"{name}-binary"))
    metadata = replace(
        plain.metadata,
        kind="regression",
        threshold=None,
        fallback=7.0,
        quantiles=(0.1, 0.9),
        fallback_quantiles=(1.0, 20.0),
    )
    specs = metadata.features
    numbers = sum(spec.kind == "number" for spec in specs)
    path = couriers.locations.bundles("parcel_late") / name
    reference = pa.table({"score": [0.5]})
    write_bundle(path, model=values(numbers, len(specs) - numbers), metadata=metadata, reference=reference)
    return path


def test_a_value_is_answered_with_its_quantiles_logged_and_repeated(serve: Any, minutes: Any) -> None:
    minutes.deploy(1, (1, bundle(minutes, "one")))
    served = serve()
    first = served.request("POST", "/v1/tasks/parcel_late/predict", json={"request_id": "q1", "rows": [ROW]}).json()
    assert first["predictions"] == [
        {"parcel": "p1", "value": 12.5, "quantiles": {"0.1": 4.0, "0.9": 30.0}, "variant": "champion", "version": 1}
    ]
    [line] = served.logged()
    assert (line["score"], line["decision"], json.loads(line["quantiles"])) == (12.5, 0, {"0.1": 4.0, "0.9": 30.0})
    again = served.request("POST", "/v1/tasks/parcel_late/predict", json={"request_id": "q1", "rows": [ROW]}).json()
    assert again == first | {"degraded": ["repeated"]}


def test_the_baseline_answers_the_training_rows_median_and_quantiles(serve: Any, minutes: Any) -> None:
    minutes.deploy(1, (0, bundle(minutes, "one")))
    [told] = serve().ask(ROW).json()["predictions"]
    assert (told["version"], told["value"], told["quantiles"]) == (0, 7.0, {"0.1": 1.0, "0.9": 20.0})


def test_the_interface_says_what_is_answered(serve: Any, minutes: Any) -> None:
    minutes.deploy(1, (1, bundle(minutes, "one")))
    schemas = serve().request("GET", "/openapi.json").json()["components"]["schemas"]
    prediction = schemas["parcel_late.Answer"]["properties"]["predictions"]["items"]
    assert prediction["required"] == ["parcel", "value", "quantiles", "variant", "version"]
    assert set(prediction["properties"]["quantiles"]["properties"]) == {"0.1", "0.9"}
