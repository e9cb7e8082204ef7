"""What a feature service needs and gives, as its repository defines it: join keys, request fields, features, sources.

Reads the registry only; no row of any source.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asof.view import View, compile_view
from training.frame import FrameError

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

_NUMBERS = frozenset({"Int32", "Int64", "Float32", "Float64", "Bool", "Decimal"})
_ARRAYS = frozenset({"Array(Int32)", "Array(Int64)", "Array(Float32)", "Array(Float64)"})


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of the service."""

    name: str
    view: str
    """The view it comes from, by the name it has in the service."""
    declared: str
    """Feast's type."""
    kind: str
    """"number", "text", "array" (of numbers), or what no model input is: "bytes", "instant", "other"."""


@dataclass(frozen=True, slots=True)
class Definitions:
    """A feature service and all that stands behind it."""

    service: str
    features: tuple[Feature, ...]
    """In the service's order."""
    keys: Mapping[str, str]
    """Spine column to Arrow type of every join key, those of views behind on-demand ones included."""
    request_fields: Mapping[str, str]
    """Name to Feast type of every request-time input of its on-demand views."""
    views: tuple[View, ...]
    """Those with a source of rows."""

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each feature by name."""
        return {feature.name: feature.kind for feature in self.features}

    def features_of(self, view: str) -> tuple[str, ...]:
        """Names of the service's features that come from this view."""
        return tuple(feature.name for feature in self.features if feature.view == view)


def find_service(store: FeatureStore, name: str, repo: Path) -> FeatureService:
    """The feature service of an opened repository. Raises FrameError with the nearest name there is."""
    known = {service.name: service for service in store.list_feature_services()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise FrameError(
        f"feature_service {name!r} is not in {repo}; it has {', '.join(sorted(known)) or 'none'}.",
        hint=f"did you mean {near[0]!r}?" if near else "define it and run `skewless apply`.",
    )


def read_definitions(store: FeatureStore, service: FeatureService) -> Definitions:
    """Follow a service through its views to their sources.

    Raises:
        AsofError: a view that asof cannot compute, or that contradicts itself.
    """
    features: list[Feature] = []
    request: dict[str, str] = {}
    views: dict[str, View] = {}
    wanted = [(projection, True) for projection in service.feature_view_projections]
    for projection, is_asked in wanted:  # grows by what on-demand views read
        view: Any = store.registry.get_any_feature_view(projection.name, store.project, allow_cache=True)
        name = projection.name_to_use()
        if is_asked:
            features += [Feature(f.name, name, str(f.dtype), _kind(str(f.dtype))) for f in projection.features]
        if hasattr(view, "source_request_sources"):
            for source in view.source_request_sources.values():
                request |= {field.name: str(field.dtype) for field in source.schema}
            wanted += [(behind, False) for behind in view.source_feature_view_projections.values()]
            continue
        names = [field.name for field in projection.features]
        before = views.get(name)
        names += [feature.name for feature in before.features if feature.name not in names] if before else []
        views[name] = compile_view(view.with_projection(projection), store.config, names)
    keys = {key.column: str(key.dtype) for view in views.values() for key in view.keys}
    return Definitions(service.name, tuple(features), keys, request, tuple(views.values()))


def _kind(declared: str) -> str:
    if declared in _NUMBERS:
        return "number"
    if declared in ("String", "Uuid"):
        return "text"
    if declared == "UnixTimestamp":
        return "instant"
    if declared in _ARRAYS:
        return "array"
    return "bytes" if declared.endswith("Bytes") else "other"
