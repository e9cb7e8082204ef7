"""What Feast's registry would lose, kept.

Three things a definition may hold do not come back from Feast 0.67's registry:

- the aggregations of a `BatchFeatureView` (those of a `StreamFeatureView` do): they travel as a tag;
- a SQL transformation, for which Feast lacks the reading half: it is read as Feast reads Python ones;
- packages and constants a transformation uses from its module: Feast makes the function of its text alone, with pandas
  and NumPy at hand. Where that is not enough, its pickled body is taken, as Feast does for a `StreamFeatureView`.
  Another function of that module has no body there: define or import it inside.

Importing `asof.offline_store`, which Feast does before it reads any definition or registry, is what makes both so.
"""

from __future__ import annotations

import builtins
import dis
import json
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import dill
from feast import BatchFeatureView, FeatureView
from feast.aggregation import Aggregation
from feast.protos.feast.core.Aggregation_pb2 import Aggregation as AggregationProto
from feast.protos.feast.core.Transformation_pb2 import UserDefinedFunctionV2
from feast.transformation import udf_rehydrate
from feast.transformation.mode import TransformationMode
from feast.transformation.sql_transformation import SQLTransformation
from google.protobuf.json_format import MessageToDict, ParseDict

TAG = "asof.aggregations"

_resolved_by_feast = udf_rehydrate.resolve_udf


def keep() -> None:
    """Fill the gaps, for this process."""
    udf_rehydrate.resolve_udf = _resolve_udf
    BatchFeatureView.to_proto_spec = _to_proto_spec  # type: ignore[method-assign, assignment]
    if not hasattr(SQLTransformation, "from_proto"):
        SQLTransformation.from_proto = staticmethod(_sql_from_proto)  # type: ignore[attr-defined]


def aggregations_of(view: FeatureView) -> list[Aggregation]:
    """The aggregations of a view, defined in this process or read from a registry; empty for a plain view."""
    defined = getattr(view, "aggregations", None)
    if defined:
        return list(defined)
    written = json.loads((view.tags or {}).get(TAG, "[]"))
    return [Aggregation.from_proto(ParseDict(aggregation, AggregationProto())) for aggregation in written]


def _to_proto_spec(view: BatchFeatureView, seen: dict[str, Any]) -> Any:
    spec = FeatureView.to_proto_spec(view, seen)
    if view.aggregations:
        spec.tags[TAG] = json.dumps([MessageToDict(aggregation.to_proto()) for aggregation in view.aggregations])
    return spec


def _sql_from_proto(proto: UserDefinedFunctionV2) -> SQLTransformation:
    function = _resolve_udf(
        udf_string=proto.body_text or "", body=proto.body or None, preferred_name=proto.name or None
    )
    return SQLTransformation(mode=TransformationMode.SQL, udf=function, udf_string=proto.body_text)


def _resolve_udf(*, body: bytes | None = None, **said: Any) -> Callable[..., Any]:
    """Feast's `resolve_udf`, whose function knows the names it uses wherever they can be had."""
    function: Callable[..., Any] = _resolved_by_feast(body=body, **said)
    code = getattr(function, "__code__", None)
    if body is None or code is None or all(_is_known(name, function) for name in _global_names(code)):
        return function
    try:
        whole: Callable[..., Any] = dill.loads(body)
    except Exception:  # the body names a module that is not on this machine: running the text will say what it lacks
        return function
    return whole


def _is_known(name: str, function: Callable[..., Any]) -> bool:
    return name in function.__globals__ or hasattr(builtins, name)


def _global_names(code: CodeType) -> Iterator[str]:
    """What a function and those inside it look up in their module."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)
