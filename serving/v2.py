"""The Open Inference Protocol, version 2, without a transport: a task as a model, its question and answer as tensors.

A task is a model; its entity keys and request fields are the inputs, one value a row. What comes in is turned into the
question that the native endpoint asks, so both are checked, answered and logged alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from serving.front import Front, Outcome
from serving.requests import BadRequest, Field, RequestSchema
from serving.service import NotDeployed, PredictionService
from serving.v2_tensors import Tensor

NAME = "skewless"
VERSION = version(NAME)
EXTENSIONS = ("binary_tensor_data",)
PLATFORM = "skewless_onnx"
_NULL = ".null"
_QUANTILE = "quantile_"
_ROW = re.compile(r"rows\[(\d+)\]\.(.+)")
_INTEGERS = frozenset(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
_NUMBERS = _INTEGERS | {"FP16", "FP32", "FP64"}
_ACCEPTED: dict[str, frozenset[str]] = {
    "integer": _INTEGERS,
    "number": _NUMBERS,
    "text": frozenset({"BYTES"}),
    "boolean": frozenset({"BOOL"}),
    "timestamp": frozenset({"BYTES"}),
    "scalar": _NUMBERS | {"BYTES", "BOOL"},
}
_DECLARED = {"number": "FP64", "text": "BYTES", "boolean": "BOOL", "timestamp": "BYTES", "scalar": "BYTES"}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a model: its name and data type; one value a row."""

    name: str
    datatype: str


def inputs(schema: RequestSchema) -> list[Port]:
    """What a task's model takes. A timestamp is BYTES: ISO 8601 with a time zone, as in the native endpoint."""
    ports = [Port(each.name, _declared(each)) for each in schema.fields]
    spine = schema.task.spine
    if schema.has_case_field:
        ports.insert(0, Port(spine.id, "BYTES"))
    if schema.has_stamp_field:
        ports.append(Port(spine.event_timestamp, "BYTES"))
    return ports


def outputs(schema: RequestSchema) -> list[Port]:
    """What a task's model gives."""
    if schema.task.kind == "regression":
        levels = [Port(f"{_QUANTILE}{level:g}", "FP64") for level in schema.task.quantiles]
        own = [Port("value", "FP64"), *levels]
    else:
        own = [Port("score", "FP64"), Port("decision", "INT64")]
    return [*own, Port("version", "INT64"), Port("variant", "BYTES")]


def champion(service: PredictionService, wanted: str = "") -> str:
    """The version that a model answers with, a canary apart.

    Raises:
        NotDeployed: there is none.
        BadRequest: `wanted` names another (404).
    """
    live = service.live
    if live is None:
        raise NotDeployed(f"Task {service.task.name!r} has no version deployed.", hint="train one.")
    served = str(live.champion.version)
    if wanted not in ("", served):
        raise BadRequest(404, "version", wanted, f"{served}, the version being served, or none")
    return served


def is_ready(front: Front) -> bool:
    """Whether every task has a version loaded."""
    return all(service.live is not None for service in front.services.values())


def metadata(service: PredictionService, wanted: str = "") -> dict[str, Any]:
    """A task as the protocol describes a model. Raises BadRequest when `wanted` is not the version served."""
    served = champion(service, wanted) if wanted or service.live is not None else ""
    return {
        "name": service.task.name,
        "versions": [served] if served else [],
        "platform": PLATFORM,
        "inputs": [_described(port) for port in inputs(service.schema)],
        "outputs": [_described(port) for port in outputs(service.schema)],
    }


def question(schema: RequestSchema, request_id: str, tensors: Sequence[Tensor]) -> dict[str, Any]:
    """The native request that these inputs ask, one row a place; raises BadRequest for what they cannot."""
    columns = {each.name: each for each in tensors}
    if len(columns) != len(tensors):
        twice = next(each.name for i, each in enumerate(tensors) if each.name in {t.name for t in tensors[:i]})
        raise BadRequest(400, "inputs", twice, "each input once")
    if not tensors:
        raise BadRequest(400, "inputs", None, f"tensors named {', '.join(port.name for port in inputs(schema))}")
    count = len(tensors[0].values)
    for each in tensors:
        if len(each.values) != count:
            expected = f"{count} rows, as {tensors[0].name!r} has"
            raise BadRequest(400, f"inputs.{each.name}", f"{len(each.values)} rows", expected)
    names, known = [], {each.name: each for each in schema.fields}
    values = []
    for name, tensor in columns.items():
        if name.endswith(_NULL) and name not in known:
            continue
        field = known.get(name)
        if field is not None and tensor.datatype not in _ACCEPTED[field.type]:
            raise BadRequest(400, f"inputs.{name}.datatype", tensor.datatype, _declared(field))
        names.append(name)
        values.append(tensor.values)
    for name, tensor in columns.items():
        target = name.removesuffix(_NULL)
        if target == name or name in known:
            continue
        if tensor.datatype != "BOOL" or target not in names:
            raise BadRequest(400, f"inputs.{name}", tensor.datatype, f"BOOL, beside an input {target!r}")
        place = names.index(target)
        marks = zip(values[place], tensor.values, strict=True)
        values[place] = [None if null else value for value, null in marks]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
    return {"rows": rows} | ({"request_id": request_id} if request_id else {})


def chosen(schema: RequestSchema, names: Sequence[str]) -> list[Port]:
    """The outputs of these names; all when none is named. Raises BadRequest for an unknown one."""
    have = {port.name: port for port in outputs(schema)}
    for name in names:
        if name not in have:
            raise BadRequest(400, "outputs", name, f"of {', '.join(have)}")
    return [have[name] for name in names] or list(have.values())


def answered(payload: Mapping[str, Any], ports: Sequence[Port]) -> list[Tensor]:
    """A native answer as the tensors that were asked for."""
    rows = payload["predictions"]
    return [Tensor(port.name, port.datatype, [_value(row, port.name) for row in rows]) for port in ports]


def parameters(payload: Mapping[str, Any]) -> dict[str, str]:
    """What an answer has to say beside its tensors: why it is degraded, when it is."""
    return {"degraded": "; ".join(payload["degraded"])} if payload["degraded"] else {}


def told(outcome: Outcome) -> str:
    """Why there is no answer, in one sentence and in the protocol's words."""
    error = outcome.error
    if isinstance(error, BadRequest):
        row = _ROW.fullmatch(error.field)
        if row is not None:
            return f"Input {row[2]!r}, row {row[1]},{error.fact.removeprefix(error.field)}"
    return outcome.message


def _value(row: Mapping[str, Any], name: str) -> Any:
    level = name.removeprefix(_QUANTILE)
    return row[name] if level == name else row["quantiles"][level]


def _described(port: Port) -> dict[str, Any]:
    return {"name": port.name, "datatype": port.datatype, "shape": [-1]}


def _declared(field: Field) -> str:
    return f"INT{field.bits}" if field.type == "integer" else _DECLARED[field.type]
