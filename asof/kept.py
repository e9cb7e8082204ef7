"""What Feast's registry would lose, kept.

Two things a definition may hold do not come back from Feast 0.67's registry:

- the aggregations of a `BatchFeatureView` (those of a `StreamFeatureView` do): they travel as a tag;
- a SQL transformation, for which Feast lacks the reading half: it is read as Feast reads Python ones.

Importing `asof.offline_store`, which Feast does before it reads any definition or registry, is what makes both so.
"""

from __future__ import annotations

import json
from typing import Any

from feast import BatchFeatureView, FeatureView
from feast.aggregation import Aggregation
from feast.protos.feast.core.Aggregation_pb2 import Aggregation as AggregationProto
from feast.protos.feast.core.Transformation_pb2 import UserDefinedFunctionV2
from feast.transformation.mode import TransformationMode
from feast.transformation.sql_transformation import SQLTransformation
from feast.transformation.udf_rehydrate import resolve_udf
from google.protobuf.json_format import MessageToDict, ParseDict

TAG = "asof.aggregations"


def keep() -> None:
    """Fill both gaps, for this process."""
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
    function = resolve_udf(udf_string=proto.body_text or "", body=proto.body or None, preferred_name=proto.name or None)
    return SQLTransformation(mode=TransformationMode.SQL, udf=function, udf_string=proto.body_text)
