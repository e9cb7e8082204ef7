"""Encodings, a fitted model and its head to one ONNX graph: the model as it will be served, and nothing outside it.

Trees are written node by node, so that thresholds, missing values and node order are ours to fix: the same model gives
the same bytes, and the graph takes the same branch as the learner for every float32 input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from contracts.scorer import NUMBERS, QUANTILES, SCORE, TEXTS
from training.calibration import Calibration, Head
from training.encoding import TextEncoding

OPSET, _ML_OPSET, _IR = 17, 3, 8
_LEAF, _SPLIT = "LEAF", "BRANCH_LEQ"
Choice = tuple[int, tuple[int, ...]]
"""A text feature, counted from 0, and codes of it."""


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
    choices: dict[int, Choice] = field(default_factory=dict)
    """Node to the texts that go left there; its feature is not yet a column."""

    def add_choice(self, text: int, codes: Sequence[int], *, parent: int, is_left: bool) -> int:
        """A node that goes left where a text feature's code is one of `codes`, right for any other text."""
        number = self._add(_SPLIT, 0, 0.5, False, parent, is_left)
        self.choices[number] = (text, tuple(sorted(codes)))
        return number

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


def float32_below(threshold: float) -> float:
    """The largest float32 at or below a double: `x <= it` then means the same for every float32 x."""
    if math.isinf(threshold):
        return threshold
    limit = float(np.finfo(np.float32).max)
    nearest = np.float32(min(max(threshold, -limit), limit))
    return float(np.nextafter(nearest, np.float32(-math.inf)) if float(nearest) > threshold else nearest)


class Graph:
    """A graph under construction. `finish` closes it.

    Args:
        head: the last step; it says how many outputs there are.
        numbers: columns of the `numbers` input.
        texts: columns of the `texts` input; there is none when 0.
    """

    def __init__(self, head: Head, *, numbers: int, texts: int) -> None:
        self._head = head
        self._numbers, self._texts = numbers, texts
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        if isinstance(head, Calibration):
            self.constant("slope", np.array(head.slope, np.float32))
            self.constant("offset", np.array(head.offset, np.float32))
        else:
            self.constant("offsets", np.array(head.offsets, np.float32))
        self.constant("flat", np.array([-1], np.int64))

    def constant(self, name: str, value: np.ndarray) -> str:
        """Keep a value under a name and return the name."""
        self._constants[name] = value
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node and return its output."""
        self._nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def text(self, at: int) -> str:
        """One column of `texts`, string [N, 1]."""
        self.constant(f"column_{at}", np.array([at], np.int64))
        return self.add("Gather", [TEXTS, f"column_{at}"], f"text_{at}", axis=1)

    def look_up(self, source: str, output: str, values: Mapping[str, float], default: float) -> str:
        """Strings to float32 of the same shape; what is not in `values` is `default`."""
        # An encoder without keys is refused; this one's only key answers as everything else does.
        known = dict(sorted(values.items())) or {"": default}
        return self.add(
            "LabelEncoder",
            [source],
            output,
            domain="ai.onnx.ml",
            keys_strings=list(known),
            values_floats=[float(value) for value in known.values()],
            default_float=default,
        )

    def matrix(self, encodings: Sequence[TextEncoding]) -> str:
        """float32 [N, n + t]: the numbers, then the encoded texts."""
        if not encodings:
            return NUMBERS
        codes = [self.look_up(self.text(at), f"code_{at}", e.codes, e.unseen) for at, e in enumerate(encodings)]
        return self.add("Concat", [NUMBERS, *codes], "matrix", axis=1)

    def choices(self, encodings: Sequence[TextEncoding], wanted: Mapping[Choice, int]) -> str:
        """float32 [N, n + c]: the numbers, then a column a choice, 0 where the text is one of it and 1 where it is not.

        So that a set of texts is one comparison to a tree. A text is looked up once; its row of zeros and ones comes
        from a table.

        Args:
            encodings: one a text feature; codes are whole numbers from 0 on, a negative one is in no set.
            wanted: each choice to its column; those of one feature are consecutive.
        """
        parts = [NUMBERS]
        for at, encoding in enumerate(encodings):
            sets = [codes for text, codes in wanted if text == at]
            if not sets:
                continue
            outside = np.ones((2 + int(max(encoding.codes.values(), default=-1)), len(sets)), np.uint8)
            for column, codes in enumerate(sets):
                outside[np.add(codes, 1), column] = 0
            rows = {text: code + 1 for text, code in encoding.codes.items()}
            self.look_up(self.text(at), f"place_{at}", rows, 0.0)
            self.add("Cast", [f"place_{at}"], f"index_{at}", to=TensorProto.INT64)
            self.add("Reshape", [f"index_{at}", "flat"], f"row_{at}")
            self.add("Gather", [self.constant(f"outside_{at}", outside), f"row_{at}"], f"sets_{at}", axis=0)
            parts.append(self.add("Cast", [f"sets_{at}"], f"chosen_{at}", to=TensorProto.FLOAT))
        return self.add("Concat", parts, "matrix", axis=1)

    def trees(self, matrix: str, ensembles: Sequence[Sequence[Tree]], columns: Mapping[Choice, int]) -> str:
        """float32 [N, k]: for each output the sum of its ensemble's trees; `columns` has a choice's."""
        return self.add(
            "TreeEnsembleRegressor",
            [matrix],
            "margins",
            domain="ai.onnx.ml",
            n_targets=len(ensembles),
            **_attributes(ensembles, columns),
        )

    def embed(self, model: ModelProto, inputs: Sequence[str]) -> str:
        """Take in another graph of the same opset, whose inputs have these names here, and return its only output.

        Its other names get a prefix of their own, and where its nodes came from is left out: that is a path.
        """
        inner = model.graph
        names = {name: f"inner.{name}" for node in inner.node for name in [*node.input, *node.output] if name}
        names |= {each.name: f"inner.{each.name}" for each in inner.initializer}
        names |= {name: name for name in inputs}
        for each in inner.initializer:
            self.constant(names[each.name], numpy_helper.to_array(each))
        for number, node in enumerate(inner.node):
            taken = NodeProto()
            taken.CopyFrom(node)
            taken.name, taken.doc_string = f"inner.{number}", ""
            taken.input[:] = [names[name] if name else "" for name in node.input]
            taken.output[:] = [names[name] for name in node.output]
            self._nodes.append(taken)
        return names[inner.output[0].name]

    def finish(self, raw: str) -> bytes:
        """Put the head on the learner's raw outputs, float32 [N, k], and close the graph.

        Returns:
            The bytes of an ONNX model: `numbers` float32 [N, n], `texts` string [N, t] if there are any, `score`
            float32 [N], and for a regression with quantiles `quantiles` float32 [N, q].
        """
        inputs = [helper.make_tensor_value_info(NUMBERS, TensorProto.FLOAT, [None, self._numbers])]
        if self._texts:
            inputs.append(helper.make_tensor_value_info(TEXTS, TensorProto.STRING, [None, self._texts]))
        outputs = [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, [None])]
        if isinstance(self._head, Calibration):
            self.add("Mul", [raw, "slope"], "scaled")
            self.add("Add", ["scaled", "offset"], "shifted")
            self.add("Sigmoid", ["shifted"], "probability")
            self.add("Reshape", ["probability", "flat"], SCORE)
        else:
            outputs += self._finish_values(raw, len(self._head.offsets) - 1)
        graph = helper.make_graph(
            self._nodes,
            "skewless",
            inputs,
            outputs,
            [numpy_helper.from_array(value, name) for name, value in self._constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
        model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="skewless")
        checker.check_model(model)
        packed: bytes = model.SerializeToString(deterministic=True)
        return packed

    def _finish_values(self, raw: str, quantiles: int) -> list[ValueInfoProto]:
        moved = self.add("Add", [raw, "offsets"], "moved")
        first = self.constant("first", np.array([0], np.int64))
        self.add("Reshape", [self.add("Gather", [moved, first], "value", axis=1), "flat"], SCORE)
        if not quantiles:
            return []
        rest = self.constant("rest", np.arange(1, quantiles + 1, dtype=np.int64))
        count = self.constant("count", np.array([quantiles], np.int64))
        self.add("Gather", [moved, rest], "unordered", axis=1)
        self._nodes.append(
            helper.make_node("TopK", ["unordered", count], [QUANTILES, "places"], axis=1, largest=0, sorted=1)
        )
        return [helper.make_tensor_value_info(QUANTILES, TensorProto.FLOAT, [None, quantiles])]


def package_trees(
    ensembles: Sequence[Sequence[Tree]], encodings: Sequence[TextEncoding], head: Head, *, numbers: int
) -> bytes:
    """A whole graph of trees.

    Args:
        ensembles: an output each, its trees summed; their features are the numbers, then the encoded texts, if they
            are compared with thresholds. Texts that are chosen by their codes are compared with none.
        encodings: one a text feature, in order.
        head: sums to what is answered.
        numbers: how many number features there are.
    """
    graph = Graph(head, numbers=numbers, texts=len(encodings))
    found = {choice for ensemble in ensembles for tree in ensemble for choice in tree.choices.values()}
    columns = {choice: numbers + at for at, choice in enumerate(sorted(found))}
    matrix = graph.choices(encodings, columns) if columns else graph.matrix(encodings)
    return graph.finish(graph.trees(matrix, ensembles, columns))


def _attributes(ensembles: Sequence[Sequence[Tree]], columns: Mapping[Choice, int]) -> dict[str, Any]:
    trees = [tree for ensemble in ensembles for tree in ensemble]
    targets = [target for target, ensemble in enumerate(ensembles) for _ in ensemble]

    def flat(name: str) -> list[Any]:
        return [value for tree in trees for value in getattr(tree, name)]

    def column(tree: Tree, node: int) -> int:
        return columns[tree.choices[node]] if node in tree.choices else tree.features[node]

    leaves = [(number, node, value) for number, tree in enumerate(trees) for node, value in sorted(tree.leaves.items())]
    return {
        "nodes_treeids": [number for number, tree in enumerate(trees) for _ in tree.modes],
        "nodes_nodeids": [node for tree in trees for node in range(len(tree.modes))],
        "nodes_featureids": [column(tree, node) for tree in trees for node in range(len(tree.modes))],
        "nodes_values": flat("thresholds"),
        "nodes_modes": flat("modes"),
        "nodes_missing_value_tracks_true": flat("missing_left"),
        "nodes_truenodeids": flat("lefts"),
        "nodes_falsenodeids": flat("rights"),
        "target_treeids": [number for number, _, _ in leaves],
        "target_nodeids": [node for _, node, _ in leaves],
        "target_ids": [targets[number] for number, _, _ in leaves],
        "target_weights": [value for _, _, value in leaves],
    }
