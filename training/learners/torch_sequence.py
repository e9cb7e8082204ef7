"""Training's door to PyTorch: a small network over the places of array features, texts and numbers together.

An array reaches the model as a fixed number of places, the last one last, null where the array is shorter. Arrays are
convolved over time side by side, empty places masked out, and pooled by attention; numbers are imputed and scaled,
texts embedded; what comes of all three goes through two dense layers. Without an array it is a plain network.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from contracts.scorer import NUMBERS
from training.frame import Inputs
from training.learners.protocol import Fitted, LearnerError, Part, Problem, fit_head, settings
from training.packaging import OPSET, Graph

DEFAULTS: dict[str, Any] = {
    "epochs": 30,
    "patience": 4,
    "batch_rows": 512,
    "learning_rate": 2e-3,
    "weight_decay": 1e-4,
    "hidden": 32,
    "least_rows": 20,
}
"""`patience`: epochs without a better validation loss before it stops; `least_rows`: of a category with a vector of its
own."""
_LIMIT, _FINITE = 8.0, 1e30
"""Standard deviations beyond which a number counts no more, and what stands for an infinite one."""


class _Network(nn.Module):
    """Numbers [N, n] with NaN for null and codes [N, t] to raw outputs [N, k]."""

    medians: Tensor
    scales: Tensor
    centre: Tensor
    spread: Tensor
    plain: Tensor

    def __init__(
        self, train: Part, categories: Sequence[int], sequences: Sequence[Sequence[int]], outputs: int, hidden: int
    ) -> None:
        super().__init__()
        width = train.inputs.numbers.shape[1]
        in_arrays = {at for places in sequences for at in places}
        medians, scales = _scaling(train.inputs.numbers, sequences)
        self.register_buffer("medians", torch.from_numpy(medians))
        self.register_buffer("scales", torch.from_numpy(scales))
        self.register_buffer(
            "plain", torch.tensor([at for at in range(width) if at not in in_arrays], dtype=torch.long)
        )
        self.places = nn.ParameterList(
            [nn.Parameter(torch.tensor(list(places)), requires_grad=False) for places in sequences]
        )
        self.embeddings = nn.ModuleList(
            [nn.Embedding(count + 1, min(16, math.ceil(math.sqrt(count + 1)))) for count in categories]
        )
        size = 2 * len(self.plain) + sum(each.embedding_dim for each in self.embeddings)  # type: ignore[misc]
        if sequences:
            self.near = nn.Conv1d(2 * len(sequences), hidden, 3, padding=1)
            self.far = nn.Conv1d(hidden, hidden, 3, padding=2, dilation=2)
            self.attention = nn.Conv1d(hidden, 1, 1)
            size += 2 * hidden
        self.dense = nn.Sequential(
            nn.Linear(size, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        missing = torch.isnan(numbers)
        filled = torch.where(missing, self.medians, numbers).clamp(-_FINITE, _FINITE)
        scaled = ((filled - self.medians) * self.scales).clamp(-_LIMIT, _LIMIT)
        present = 1 - missing.to(torch.float32)
        parts = [scaled.index_select(1, self.plain), present.index_select(1, self.plain)]
        parts += [embed(codes[:, at]) for at, embed in enumerate(self.embeddings)]
        if len(self.places):
            parts += self._pooled(scaled, present)
        raw: Tensor = self.dense(torch.cat(parts, dim=1))
        return raw * self.spread + self.centre

    def _pooled(self, scaled: Tensor, present: Tensor) -> list[Tensor]:
        """What the arrays say, [N, hidden] twice: by attention, and on the average."""
        values = torch.stack([scaled.index_select(1, each) for each in self.places], dim=1)
        masks = torch.stack([present.index_select(1, each) for each in self.places], dim=1)
        some = masks.amax(dim=1, keepdim=True)
        seen = torch.relu(self.near(torch.cat([values * masks, masks], dim=1))) * some
        seen = torch.relu(self.far(seen)) * some
        weights = torch.exp(torch.tanh(self.attention(seen))) * some  # bounded, so that no exponential overflows
        attended = (seen * weights).sum(dim=2) / (weights.sum(dim=2) + 1e-6)
        return [attended, seen.sum(dim=2) / (some.sum(dim=2) + 1e-6)]


def fit(problem: Problem, train: Part, validation: Part, params: Mapping[str, Any]) -> Fitted:
    """Descend on the training rows, keep the epoch that does best on the validation rows, which the head is fitted on.

    The bytes are the same for the same seed, rows, threads and processor; another processor may round otherwise.

    Args:
        problem: what is to be learned, and which numbers are places of which array.
        train: fitted on, scaling and categories included.
        validation: chooses the epoch, and what the head is fitted on.
        params: over `DEFAULTS`.

    Raises:
        LearnerError: a parameter is unknown, of the wrong type or out of range.
    """
    used = settings("torch_sequence", DEFAULTS, params)
    for name, value in used.items():
        if value < 0 or (not value and name != "weight_decay"):
            raise LearnerError(f"training.params.{name} is {value!r}; it must be above 0.")
    tables = [_codes(column, used["least_rows"]) for column in train.inputs.texts.T]
    with _deterministic(problem):
        outputs = 1 + len(problem.quantiles)
        network = _Network(train, [len(each) for each in tables], problem.sequences, outputs, used["hidden"])
        epochs = _descend(network, problem, train, validation, tables, used)
    network.eval()

    def raw(inputs: Inputs) -> np.ndarray:
        with torch.inference_mode():
            answers: np.ndarray = network(*_tensors(inputs, tables)).double().numpy()
        return answers

    head = fit_head(problem, raw(validation.inputs), validation.labels)
    weights = sum(each.numel() for each in network.parameters() if each.requires_grad)
    return Fitted(
        model=_package(network, tables, train.inputs, Graph(head, numbers=_width(train.inputs), texts=len(tables))),
        head=head,
        raw=raw,
        params=used,
        size={"weights": weights, "epochs": epochs},
    )


def _descend(
    network: _Network,
    problem: Problem,
    train: Part,
    validation: Part,
    tables: Sequence[Mapping[str, int]],
    used: dict[str, Any],
) -> int:
    """Fit the network in place; returns how many epochs the one that is kept took."""
    labels, later = (torch.from_numpy(part.labels.astype(np.float32)) for part in (train, validation))
    if problem.kind == "regression":  # outputs near 0 and 1 are where a network learns well
        network.centre.copy_(labels.median())
        network.spread.copy_((labels - labels.median()).abs().mean().clamp(min=1e-6))
    rows, held = _tensors(train.inputs, tables), _tensors(validation.inputs, tables)
    moving = [each for each in network.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=used["learning_rate"], weight_decay=used["weight_decay"])
    kept, best, at, size = deepcopy(network.state_dict()), math.inf, 0, used["batch_rows"]
    for epoch in range(1, used["epochs"] + 1):
        network.train()
        order = torch.randperm(len(labels))
        for begin in range(0, len(order), size):
            batch = order[begin : begin + size]
            optimizer.zero_grad()
            loss = _loss(problem, network(*(each[batch] for each in rows)), labels[batch], network.spread)
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            found = float(_loss(problem, network(*held), later, network.spread))
        if found < best:
            kept, best, at = deepcopy(network.state_dict()), found, epoch
        elif epoch - at >= used["patience"]:
            break
    network.load_state_dict(kept)
    return at


def _loss(problem: Problem, raw: Tensor, labels: Tensor, spread: Tensor) -> Tensor:
    if problem.kind == "binary":
        return nn.functional.binary_cross_entropy_with_logits(raw[:, 0], labels)
    error = (labels[:, None] - raw) / spread
    first = error[:, 0].square() if problem.metric == "rmse" else error[:, 0].abs()
    levels = torch.tensor(problem.quantiles)
    return first.mean() + torch.maximum(levels * error[:, 1:], (levels - 1) * error[:, 1:]).sum(dim=1).mean()


def _scaling(numbers: np.ndarray, sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Median and one over the standard deviation of each number, float32 [n]; the places of an array share theirs."""
    finite = np.where(np.isfinite(numbers), numbers, np.nan).astype(np.float64)
    in_arrays = {at for places in sequences for at in places}
    groups = [list(places) for places in sequences] + [[at] for at in range(numbers.shape[1]) if at not in in_arrays]
    medians, scales = (np.zeros(numbers.shape[1], np.float32) for _ in range(2))
    for group in groups:
        told = finite[:, group]
        told = told[np.isfinite(told)]
        if len(told):
            medians[group], deviation = np.median(told), told.std()
            scales[group] = 1 / deviation if deviation > 1e-12 else 0
    return medians, scales


def _codes(column: np.ndarray, least_rows: int) -> dict[str, int]:
    """Category to its number from 1 on; 0 is what was never seen, or too rarely."""
    names, counts = np.unique(column.astype(str), return_counts=True)
    return {str(name): at for at, name in enumerate(names[counts >= least_rows], 1)}


def _tensors(inputs: Inputs, tables: Sequence[Mapping[str, int]]) -> tuple[Tensor, Tensor]:
    codes = np.zeros((len(inputs.numbers), len(tables)), np.int64)
    for at, (table, column) in enumerate(zip(tables, inputs.texts.T, strict=True)):
        codes[:, at] = [table.get(text, 0) for text in column]
    return torch.from_numpy(np.ascontiguousarray(inputs.numbers)), torch.from_numpy(codes)


def _width(inputs: Inputs) -> int:
    return int(inputs.numbers.shape[1])


def _package(network: _Network, tables: Sequence[Mapping[str, int]], inputs: Inputs, graph: Graph) -> bytes:
    example = _tensors(inputs.take(np.arange(2)), tables)
    file: Any = io.BytesIO()  # taken by the exporter, though its signature names paths only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package calls itself legacy
        torch.onnx.export(
            network,
            example,
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=[NUMBERS, "codes"],
            output_names=["network"],
            dynamic_axes={name: {0: "rows"} for name in (NUMBERS, "codes", "network")},
        )
    if tables:
        columns = [graph.look_up(graph.text(at), f"code_{at}", dict(table), 0.0) for at, table in enumerate(tables)]
        joined = graph.add("Concat", columns, "codes_as_numbers", axis=1) if len(columns) > 1 else columns[0]
        graph.add("Cast", [joined], "codes", to=onnx.TensorProto.INT64)
    return graph.finish(graph.embed(onnx.load_from_string(file.getvalue()), inputs=(NUMBERS, "codes")))


@contextmanager
def _deterministic(problem: Problem) -> Iterator[None]:
    """The seed, the threads and reproducible kernels, for as long as the fit takes."""
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.seed)
        torch.set_num_threads(problem.threads)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(before)
