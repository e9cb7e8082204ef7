"""Aggregations of batch views, kept where Feast's registry forgets them.

Feast 0.67 writes the aggregations of a `StreamFeatureView` to its registry and drops those of a `BatchFeatureView`:
what was a windowed view at `feast apply` comes back as a plain one. They travel as a tag instead. Importing
`asof.offline_store`, which Feast does before it reads any definition, is what makes `feast apply` write it.
"""

from __future__ import annotations

import json

from feast import BatchFeatureView, FeatureView
from feast.aggregation import Aggregation
from feast.protos.feast.core.Aggregation_pb2 import Aggregation as AggregationProto
from google.protobuf.json_format import MessageToDict, ParseDict

TAG = "asof.aggregations"


def keep_aggregations() -> None:
    """Make batch views write their aggregations as a tag of their registered form (their own tags stay as they are)."""
    BatchFeatureView.to_proto_spec = _to_proto_spec  # type: ignore[method-assign, assignment]


def _to_proto_spec(view: BatchFeatureView, seen: dict) -> object:
    spec = FeatureView.to_proto_spec(view, seen)
    if view.aggregations:
        spec.tags[TAG] = json.dumps([MessageToDict(aggregation.to_proto()) for aggregation in view.aggregations])
    return spec


def aggregations_of(view: FeatureView) -> list[Aggregation]:
    """The aggregations of a view, defined in this process or read from a registry; empty for a plain view."""
    defined = getattr(view, "aggregations", None)
    if defined:
        return list(defined)
    written = json.loads((view.tags or {}).get(TAG, "[]"))
    return [Aggregation.from_proto(ParseDict(aggregation, AggregationProto())) for aggregation in written]
