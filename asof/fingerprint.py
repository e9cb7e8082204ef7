"""What a feature service rests on: its meaning as one hash, and the files behind it.

    service_fingerprint(store, "late_arrival_v1")     # 64 hex digits, equal in every process and on every machine
    source_files(store, "late_arrival_v1")            # the Parquet files its values come from

Two stores with equal fingerprints compute equal features from equal rows.

The fingerprint covers everything that can change a value: views, schemas, join keys, sources' columns and mappings,
TTLs, windows, tags, the source text of transformations, the service's own selection and order. It leaves out what
cannot: where files lie, descriptions, owners, dates of application, pickled function bodies.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from feast import FeatureService, FeatureStore, FileSource
from feast.feature_view_projection import FeatureViewProjection
from feast.on_demand_feature_view import OnDemandFeatureView
from google.protobuf.json_format import MessageToDict

from asof.files import parquet_files
from asof.view import file_source

_MEANINGLESS = {"description", "owner", "org", "project", "meta", "uri", "state"}
# Field lists whose order the definitions do not fix; a service's own order is kept by `_selection`.
_UNORDERED = {"features", "entityColumns", "entities"}


def service_fingerprint(store: FeatureStore, service_name: str) -> str:
    """Hash the definitions of everything behind a feature service, as the registry holds them.

    Raises:
        feast.errors.FeatureServiceNotFoundException: the registry has no such service.
    """
    service = store.registry.get_feature_service(service_name, store.project, allow_cache=False)
    return hashlib.sha256(json.dumps(_definition(store, service), sort_keys=True).encode()).hexdigest()


def source_files(store: FeatureStore, service_name: str) -> tuple[Path, ...]:
    """The local files that the values of a feature service are computed from, sorted.

    Remote sources and those of other offline stores are left out: their bytes are not here to look at.

    Raises:
        feast.errors.FeatureServiceNotFoundException: the registry has no such service.
    """
    service = store.registry.get_feature_service(service_name, store.project, allow_cache=False)
    found: set[Path] = set()
    for view in _views_behind(store, service).values():
        batch = getattr(view, "batch_source", None)
        if isinstance(batch, FileSource):
            source = file_source(batch, view.name, store.config)
            found |= set(parquet_files(Path(source.path)) if source.dataset is None else ())
    return tuple(sorted(found))


def _definition(store: FeatureStore, service: FeatureService) -> dict[str, Any]:
    behind = _views_behind(store, service)
    entities: dict[str, Any] = {}
    for view in behind.values():
        entities |= dict.fromkeys(view.entities or [])
    for name in entities:
        if name != "__dummy":
            entity = store.registry.get_entity(name, store.project, allow_cache=False)
            entities[name] = [entity.join_key, entity.value_type.name]
    return {
        "service": [_selection(projection) for projection in service.feature_view_projections],
        "views": {
            name: {"type": type(view).__name__, "spec": _meaning(MessageToDict(view.to_proto().spec))}
            for name, view in behind.items()
        },
        "entities": entities,
    }


def _views_behind(store: FeatureStore, service: FeatureService) -> dict[str, Any]:
    """Every view the service's features come from, by name, those under on-demand views included."""
    views: dict[str, Any] = {}
    pending = [projection.name for projection in service.feature_view_projections]
    while pending:
        name = pending.pop()
        if name in views:
            continue
        view: Any = store.registry.get_any_feature_view(name, store.project, allow_cache=False)
        views[name] = view
        if isinstance(view, OnDemandFeatureView):
            pending += [projection.name for projection in view.source_feature_view_projections.values()]
        else:
            pending += [source.name for source in view.source_views or []]
    return views


def _selection(projection: FeatureViewProjection) -> dict[str, Any]:
    return {
        "view": projection.name,
        "alias": projection.name_alias,
        "join_keys": dict(projection.join_key_map),
        "features": [[feature.name, str(feature.dtype)] for feature in projection.features],
    }


def _meaning(value: Any) -> Any:
    """A definition's JSON without what cannot change a feature's value."""
    if isinstance(value, list):
        return [_meaning(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _meaning(each) for key, each in value.items() if key not in _MEANINGLESS}
    if "bodyText" in value:
        kept.pop("body", None)  # pickled bytes differ between Python versions, the text does not
    if "uri" in value.get("fileOptions", {}) and value.get("name") == value["fileOptions"]["uri"]:
        del kept["name"]  # an unnamed file source is named after its path
    for key in _UNORDERED & kept.keys():
        kept[key] = sorted(kept[key], key=lambda each: json.dumps(each, sort_keys=True))
    return kept
