"""The packaged model, run: the one place that knows ONNX Runtime, for training (evaluation) and serving alike."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: from then on it reports to its maker
import onnxruntime as ort

from contracts.errors import SkewlessError

NUMBERS, TEXTS, SCORE, QUANTILES = "numbers", "texts", "score", "quantiles"
"""Names of the graph's inputs and outputs."""
_OUTPUTS = ([SCORE], [SCORE, QUANTILES])
_AT_ONCE = 4096
"""Rows given to ONNX Runtime in one call: what a graph computes on its way may be much wider than its inputs."""


class ScorerError(SkewlessError, ValueError):
    """A graph that cannot be loaded, or that does not have a bundle's inputs and output."""


class Scorer:
    """One loaded graph; `score` may be called from any thread.

    Args:
        model: path of an ONNX file, or its bytes.

    Raises:
        ScorerError: ONNX Runtime refuses the graph, or its inputs and output are not those of a bundle.
    """

    def __init__(self, model: Path | bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # one row is too little work to share out
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise ScorerError(
                f"ONNX Runtime cannot load the model: {error}", hint="restore the bundle, or train again."
            ) from error
        inputs = {each.name: each.shape[1] for each in self._session.get_inputs()}
        outputs = {each.name: each.shape for each in self._session.get_outputs()}
        if NUMBERS not in inputs or set(inputs) - {NUMBERS, TEXTS} or list(outputs) not in _OUTPUTS:
            raise ScorerError(
                f"The graph has inputs {sorted(inputs)} and outputs {list(outputs)}; a bundle's are numbers, texts and "
                "score, with quantiles beside it for a regression."
            )
        self.numbers: int = inputs[NUMBERS]
        """Columns of the `numbers` input."""
        self.texts: int = inputs.get(TEXTS, 0)
        """Columns of the `texts` input; 0 when the graph has none."""
        self.quantiles: int = outputs[QUANTILES][1] if QUANTILES in outputs else 0
        """Columns of the `quantiles` output; 0 when the graph has none."""

    def score(self, numbers: np.ndarray, texts: np.ndarray | None = None) -> np.ndarray:
        """Scores of N rows.

        Args:
            numbers: float32 [N, n], null as NaN.
            texts: object [N, t] of str, null as the empty string; left out or ignored when the graph has no texts.

        Returns:
            float32 [N]: a binary task's probability, a regression's value.
        """
        scores: np.ndarray = self._run([SCORE], numbers, texts)[0]
        return scores

    def predict(self, numbers: np.ndarray, texts: np.ndarray | None = None) -> np.ndarray:
        """Everything the graph answers of N rows: float32 [N, 1 + q], the score and then the quantiles, rising."""
        if not self.quantiles:
            return self.score(numbers, texts)[:, None]
        score, quantiles = self._run([SCORE, QUANTILES], numbers, texts)
        return np.column_stack([score, quantiles])

    def _run(self, wanted: list[str], numbers: np.ndarray, texts: np.ndarray | None) -> list[np.ndarray]:
        if len(numbers) <= _AT_ONCE:
            return self._call(wanted, numbers, texts)
        parts = [
            self._call(wanted, numbers[at : at + _AT_ONCE], None if texts is None else texts[at : at + _AT_ONCE])
            for at in range(0, len(numbers), _AT_ONCE)
        ]
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _call(self, wanted: list[str], numbers: np.ndarray, texts: np.ndarray | None) -> list[np.ndarray]:
        feed: dict[str, np.ndarray | None] = {NUMBERS: numbers}
        if self.texts:
            feed[TEXTS] = texts
        answered: list[np.ndarray] = self._session.run(wanted, feed)
        return answered
