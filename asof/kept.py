"""What Feast's registry would lose, kept; and what would keep a change out of it, mended.

Some of what a definition may hold does not come back from Feast 0.67's registry:

- the aggregations of a `BatchFeatureView` (those of a `StreamFeatureView` do): they travel as a tag;
- a SQL transformation, for which Feast lacks the reading half: it is read as Feast reads Python ones;
- what a transformation uses of its module: Feast makes the function of its text alone, with pandas and NumPy at hand.
  The text that is stored holds all of that (`asof.uses`), so whoever compares or hashes it sees a change of it too.
  A transformation that uses what cannot be written down is refused when it is applied. The pickled body is taken only
  where a text makes no function that knows what it needs, as in a registry from before; for stream views too.

And a change to the transformation of a registered `BatchFeatureView` stays out of it: Feast does not compare them, or
stops while it compares, looking for a field that such views do not have.

Importing `asof.offline_store`, which Feast does before it reads any definition or registry, is what makes all of it so.
"""

from __future__ import annotations

import builtins
import copy
import dis
import json
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import dill
from feast import BatchFeatureView, FeatureView, OnDemandFeatureView, StreamFeatureView
from feast.aggregation import Aggregation
from feast.diff import registry_diff
from feast.diff.property_diff import PropertyDiff, TransitionType
from feast.protos.feast.core.Aggregation_pb2 import Aggregation as AggregationProto
from feast.protos.feast.core.Transformation_pb2 import UserDefinedFunctionV2
from feast.transformation import udf_rehydrate
from feast.transformation.base import Transformation
from feast.transformation.mode import TransformationMode
from feast.transformation.sql_transformation import SQLTransformation
from google.protobuf.json_format import MessageToDict, ParseDict

from asof.errors import AsofError
from asof.uses import standing_alone, unkept

TAG = "asof.aggregations"

_resolved_by_feast = udf_rehydrate.resolve_udf
_compared_by_feast = registry_diff.diff_registry_objects
_equal_for_feast = FeatureView.__eq__
_changed_for_feast = FeatureView._schema_or_udf_changed
_stream_for_feast: Any = StreamFeatureView.from_proto.__func__  # type: ignore[attr-defined]
_valid_for_feast = {kind: kind.ensure_valid for kind in (FeatureView, OnDemandFeatureView)}


class UnkeptTransformation(AsofError, ValueError):
    """A transformation uses something that a registry cannot hold."""


def keep() -> None:
    """Fill the gaps, for this process."""
    udf_rehydrate.resolve_udf = _resolve_udf
    if not hasattr(SQLTransformation, "from_proto"):
        SQLTransformation.from_proto = staticmethod(_sql_from_proto)  # type: ignore[attr-defined]
    registry_diff.diff_registry_objects = _compare  # type: ignore[assignment]
    ours: list[tuple[type, str, Any]] = [
        (BatchFeatureView, "tags", property(_tags, _set_tags)),
        (BatchFeatureView, "_from_proto_internal", classmethod(_batch_from_proto)),
        (StreamFeatureView, "from_proto", classmethod(_stream_from_proto)),
        (FeatureView, "__eq__", _equal),
        (FeatureView, "_schema_or_udf_changed", _changed),
        (FeatureView, "ensure_valid", _ensure_valid),
        (OnDemandFeatureView, "ensure_valid", _ensure_valid),
        (Transformation, "udf_string", property(_text, _set_text)),
        (StreamFeatureView, "udf_string", property(_text, _set_text)),
    ]
    for kind, name, way in ours:
        setattr(kind, name, way)


def aggregations_of(view: FeatureView) -> list[Aggregation]:
    """The aggregations of a view, defined in this process or read from a registry; empty for a plain view."""
    defined = getattr(view, "aggregations", None)
    if defined:
        return list(defined)
    written = json.loads((view.tags or {}).get(TAG, "[]"))
    return [Aggregation.from_proto(ParseDict(aggregation, AggregationProto())) for aggregation in written]


def _tags(view: BatchFeatureView) -> dict[str, str]:
    tags: dict[str, str] = view.__dict__["tags"]
    if not view.aggregations:
        return tags
    return {**tags, TAG: json.dumps([MessageToDict(aggregation.to_proto()) for aggregation in view.aggregations])}


def _set_tags(view: BatchFeatureView, tags: dict[str, str]) -> None:
    view.__dict__["tags"] = tags


def _batch_from_proto(
    kind: type[BatchFeatureView], proto: Any, seen: dict[str, Any], skip_udf: bool = False
) -> FeatureView:
    """Feast's way for a view whose kind it does not know yet: only there is a transformation read."""
    return FeatureView._from_proto_internal(proto, seen=seen, skip_udf=skip_udf)


def _stream_from_proto(kind: type[StreamFeatureView], proto: Any, skip_udf: bool = False) -> StreamFeatureView:
    """As Feast reads the others: the function is made of its text, which is what a fingerprint covers."""
    view = _stream_for_feast(kind, proto, skip_udf=True)
    if not skip_udf and proto.spec.HasField("user_defined_function"):
        stored = proto.spec.user_defined_function
        view.udf = udf_rehydrate.resolve_udf(
            udf_string=stored.body_text, body=stored.body or None, preferred_name=stored.name or None
        )
        view.feature_transformation = view.get_feature_transformation()
        view._raw_udf_proto = view._raw_feature_transformation_proto = None
    return view


def _equal(view: FeatureView, other: object) -> bool:
    return bool(_equal_for_feast(view, other)) and _transformation(view) == _transformation(other)


def _changed(view: FeatureView, other: Any) -> bool:
    return (
        _changed_for_feast(view, other)
        or _transformation(view) != _transformation(other)
        or (not isinstance(view, StreamFeatureView) and view.tags.get(TAG) != other.tags.get(TAG))
    )


def _transformation(view: Any) -> tuple[str, str] | None:
    """Text and mode of a plain or batch view's transformation; None without one. Feast compares a stream view's."""
    own = None if isinstance(view, StreamFeatureView) else getattr(view, "feature_transformation", None)
    if own is None or not hasattr(own, "udf_string"):
        return None
    return own.udf_string, str(getattr(own.mode, "value", own.mode))


def _compare(current: Any, new: Any, kind: Any) -> Any:
    """Feast's `diff_registry_objects`, for views whose transformation may have changed too."""
    # The registry gives a batch view without a transformation back as a plain one.
    if not all(isinstance(view, FeatureView) and not isinstance(view, StreamFeatureView) for view in (current, new)):
        return _compared_by_feast(current, new, kind)
    rests = [copy.copy(view) for view in (current, new)]
    for rest, view in zip(rests, (current, new), strict=True):
        rest.mode = view.mode  # a plain view's copy forgets it
        rest.feature_transformation = rest._raw_feature_transformation_proto = None
    found = _compared_by_feast(rests[0], rests[1], kind)
    found.current_feast_object, found.new_feast_object = current, new
    before, after = (_transformation(view) or ("", "") for view in (current, new))
    if before != after:
        found.feast_object_property_diffs.append(PropertyDiff("feature_transformation", before[0], after[0]))
        found.transition_type = TransitionType.UPDATE
    return found


def _text(holder: Any) -> str:
    """The text of a transformation with what it uses of its module, as that is now."""
    text = holder.__dict__.get("udf_string")
    return standing_alone(getattr(holder, "udf", None), text) if text else text


def _set_text(holder: Any, text: str) -> None:
    holder.__dict__["udf_string"] = text


def _ensure_valid(view: Any) -> None:
    _valid_for_feast[OnDemandFeatureView if isinstance(view, OnDemandFeatureView) else FeatureView](view)
    holder = view if isinstance(view, StreamFeatureView) else getattr(view, "feature_transformation", None)
    function = getattr(holder, "udf", None)
    lacking = unkept(function, holder.__dict__.get("udf_string") or "") if function is not None else {}
    for name, why in sorted(lacking.items()):
        raise UnkeptTransformation(
            f"View {view.name!r}: its transformation uses {name!r}, {why}; a registry could not give it back.",
            hint=f"Define or import {name} inside the function, or make it a constant of plain values.",
        )


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
