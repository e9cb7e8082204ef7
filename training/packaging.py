"""Trees, encodings and calibration to one ONNX graph: the model as it will be served, and nothing outside it.

Written from the trees themselves, so that thresholds, missing values and node order are ours to fix: the same model
gives the same bytes, and the graph takes the same branch as the learner for every float32 input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from contracts.scorer import NUMBERS, SCORE, TEXTS
from training.calibration import Calibration
from training.encoding import TextEncoding

_OPSET, _ML_OPSET, _IR = 17, 3, 8
_LEAF, _SPLIT = "LEAF", "BRANCH_LEQ"


@dataclass(slots=True)
class Tree:
    """A binary regression tree as parallel lists over its nodes; node 0 is the root."""

    modes: list[str] = field(default_factory=list)
    features: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    missing_left: list[int] = field(default_factory=list)
    lefts: list[int] = field(default_factory=list)
    rights: list[int] = field(default_factory=list)
    leaves: dict[int, float] = field(default_factory=dict)
    """Node to value, leaves only."""

    def add_split(self, feature: int, threshold: float, missing_left: bool, *, parent: int, is_left: bool) -> int:
        """A node that goes left where its feature is at most `threshold`; returns its number."""
        return self._add(_SPLIT, feature, threshold, missing_left, parent, is_left)

    def add_leaf(self, value: float, *, parent: int, is_left: bool) -> None:
        """A node that answers `value`."""
        self.leaves[self._add(_LEAF, 0, 0.0, False, parent, is_left)] = value

    def _add(self, mode: str, feature: int, threshold: float, missing: bool, parent: int, is_left: bool) -> int:
        number = len(self.modes)
        self.modes.append(mode)
        self.features.append(feature)
        self.thresholds.append(threshold)
        self.missing_left.append(int(missing))
        self.lefts.append(0)
        self.rights.append(0)
        if parent >= 0:
            (self.lefts if is_left else self.rights)[parent] = number
        return number


def package(
    trees: Sequence[Tree], encodings: Sequence[TextEncoding], calibration: Calibration, *, numbers: int
) -> bytes:
    """A serialized graph with a bundle's inputs and output.

    Args:
        trees: summed to the margin; their features are the numbers, then the encoded texts.
        encodings: one a text feature, in order.
        calibration: margin to score.
        numbers: how many number features there are.

    Returns:
        The bytes of an ONNX model: `numbers` float32 [N, n], `texts` string [N, t] if there are encodings,
        `score` float32 [N].
    """
    inputs = [helper.make_tensor_value_info(NUMBERS, TensorProto.FLOAT, [None, numbers])]
    constants: dict[str, np.ndarray] = {
        "slope": np.array(calibration.slope, np.float32),
        "offset": np.array(calibration.offset, np.float32),
        "flat": np.array([-1], np.int64),
    }
    nodes: list[NodeProto] = []
    matrix = NUMBERS
    if encodings:
        inputs.append(helper.make_tensor_value_info(TEXTS, TensorProto.STRING, [None, len(encodings)]))
        codes = []
        for at, encoding in enumerate(encodings):
            constants[f"column_{at}"] = np.array([at], np.int64)
            nodes.append(helper.make_node("Gather", [TEXTS, f"column_{at}"], [f"text_{at}"], axis=1))
            nodes.append(_encoder(f"text_{at}", f"code_{at}", encoding))
            codes.append(f"code_{at}")
        matrix = "matrix"
        nodes.append(helper.make_node("Concat", [NUMBERS, *codes], [matrix], axis=1))
    nodes += [
        helper.make_node(
            "TreeEnsembleRegressor", [matrix], ["margins"], domain="ai.onnx.ml", n_targets=1, **_attributes(trees)
        ),
        helper.make_node("Mul", ["margins", "slope"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["shifted"]),
        helper.make_node("Sigmoid", ["shifted"], ["probability"]),
        helper.make_node("Reshape", ["probability", "flat"], [SCORE]),
    ]
    graph = helper.make_graph(
        nodes,
        "skewless",
        inputs,
        [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
    model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="skewless")
    checker.check_model(model)
    packed: bytes = model.SerializeToString(deterministic=True)
    return packed


def _encoder(source: str, target: str, encoding: TextEncoding) -> NodeProto:
    # An encoder without keys is refused; this one's only key answers as everything else does.
    codes = dict(sorted(encoding.codes.items())) or {"": encoding.unseen}
    return helper.make_node(
        "LabelEncoder",
        [source],
        [target],
        domain="ai.onnx.ml",
        keys_strings=list(codes),
        values_floats=list(codes.values()),
        default_float=encoding.unseen,
    )


def _attributes(trees: Sequence[Tree]) -> dict[str, Any]:
    def flat(name: str) -> list[Any]:
        return [value for tree in trees for value in getattr(tree, name)]

    leaves = [(number, node, value) for number, tree in enumerate(trees) for node, value in sorted(tree.leaves.items())]
    return {
        "nodes_treeids": [number for number, tree in enumerate(trees) for _ in tree.modes],
        "nodes_nodeids": [node for tree in trees for node in range(len(tree.modes))],
        "nodes_featureids": flat("features"),
        "nodes_values": flat("thresholds"),
        "nodes_modes": flat("modes"),
        "nodes_missing_value_tracks_true": flat("missing_left"),
        "nodes_truenodeids": flat("lefts"),
        "nodes_falsenodeids": flat("rights"),
        "target_treeids": [number for number, _, _ in leaves],
        "target_nodeids": [node for _, node, _ in leaves],
        "target_ids": [0] * len(leaves),
        "target_weights": [value for _, _, value in leaves],
    }
