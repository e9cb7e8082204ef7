"""A packaged model is run as the bundle's format says, and refused when it has another shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from contracts.scorer import Scorer, ScorerError


def graph(*, output: str = "score", texts: bool = False, extra: bool = False) -> bytes:
    """The sum of two numbers; texts, where there are some, change nothing."""
    inputs = [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, [None, 2])]
    nodes = [helper.make_node("ReduceSum", ["numbers", "axes"], [output], keepdims=0)]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None])]
    if texts:
        inputs.append(helper.make_tensor_value_info("texts", TensorProto.STRING, [None, 1]))
    if extra:
        inputs.append(helper.make_tensor_value_info("images", TensorProto.FLOAT, [None, 1]))
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    made = helper.make_model(
        helper.make_graph(nodes, "sum", inputs, outputs, [axes]), opset_imports=[helper.make_opsetid("", 15)]
    )
    made.ir_version = 8
    return made.SerializeToString()


def test_rows_are_scored_in_order_from_bytes_or_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graph())
    rows = np.array([[1, 2], [3, 4], [np.nan, 1]], dtype=np.float32)
    for scorer in (Scorer(path), Scorer(graph())):
        assert (scorer.numbers, scorer.texts) == (2, 0)
        scores = scorer.score(rows, np.array([["left", "out"]], dtype=object))
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(scores, np.array([3, 7, np.nan], dtype=np.float32))


def test_texts_are_handed_over_where_the_graph_has_some() -> None:
    scorer = Scorer(graph(texts=True))
    assert scorer.texts == 1
    assert scorer.score(np.ones((1, 2), dtype=np.float32), np.array([["Bern"]], dtype=object)).tolist() == [2.0]


def test_many_rows_are_scored_in_parts_and_in_order() -> None:
    rows = np.random.default_rng(1).random((10_000, 2), np.float32)
    texts = np.full((10_000, 1), "Bern", dtype=object)
    for scorer in (Scorer(graph()), Scorer(graph(texts=True))):
        np.testing.assert_array_equal(scorer.score(rows, texts), rows.sum(axis=1))
    np.testing.assert_array_equal(Scorer(graph()).predict(rows)[:, 0], rows.sum(axis=1))


@pytest.mark.parametrize("model", [graph(output="probability"), graph(extra=True)])
def test_a_graph_of_another_shape_is_refused(model: bytes) -> None:
    with pytest.raises(ScorerError, match="a bundle's are numbers, texts and score"):
        Scorer(model)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScorerError, match="ONNX Runtime cannot load"):
        Scorer(b"not a graph")
    with pytest.raises(ScorerError, match="ONNX Runtime cannot load"):
        Scorer(tmp_path / "nowhere.onnx")


def test_quantiles_come_beside_the_score() -> None:
    value = helper.make_tensor_value_info
    inputs = [value("numbers", TensorProto.FLOAT, [None, 2])]
    outputs = [value("score", TensorProto.FLOAT, [None]), value("quantiles", TensorProto.FLOAT, [None, 2])]
    nodes = [
        helper.make_node("ReduceSum", ["numbers", "axes"], ["score"], keepdims=0),
        helper.make_node("Identity", ["numbers"], ["quantiles"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    made = helper.make_model(
        helper.make_graph(nodes, "sum", inputs, outputs, [axes]), opset_imports=[helper.make_opsetid("", 15)]
    )
    made.ir_version = 8
    scorer = Scorer(made.SerializeToString())
    assert scorer.quantiles == 2
    rows = np.array([[1, 2], [3, 4]], dtype=np.float32)
    assert scorer.predict(rows).tolist() == [[3, 1, 2], [7, 3, 4]]
    assert scorer.score(rows).tolist() == [3, 7]
    assert Scorer(graph()).quantiles == 0
    assert Scorer(graph()).predict(rows).tolist() == [[3], [7]]


def test_the_runtime_reports_to_nobody(tmp_path: Path) -> None:
    """Left alone it keeps events in the home folder until they reach its maker."""
    (tmp_path / "model.onnx").write_bytes(graph())
    said = "import sys; from pathlib import Path; from contracts.scorer import Scorer; Scorer(Path(sys.argv[1]))"
    silent = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI")
    environment = {name: value for name, value in os.environ.items() if name not in silent}
    subprocess.run(
        [sys.executable, "-c", said, str(tmp_path / "model.onnx")],
        env=environment | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
    )
    assert not (tmp_path / "home").exists()
