"""How old the values of a feature service are: the time of the row, or window, that each stored view answers with."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from feast import FeatureService, FeatureStore
from feast.utils import _get_online_request_context

from asof.engine import as_of
from asof.entities import read_entities
from asof.offline_store import open_session
from asof.view import UnsupportedView, compile_view


def value_times(store: FeatureStore, service: FeatureService, rows: pa.Table) -> dict[str, list[int | None]]:
    """What `get_historical_features` answers these rows with, as times instead of values.

    Args:
        store: of the repository.
        service: its stored views, and those behind its on-demand views, are asked.
        rows: entity rows, as retrieval takes them.

    Returns:
        View (its alias, where the service gives one) to microseconds since the epoch, one a row; None where the view
        has nothing to answer with. A time stands even where the value is older than the view's TTL: it says why the
        value is null. Empty for a repository whose sources are no files.
    """
    grouped = _get_online_request_context(store.registry, store.project, service, False)[5]
    try:
        views = [compile_view(view, store.config, sorted(names)[:1]) for view, names in grouped]
    except UnsupportedView:
        return {}
    with open_session(store.config) as session:
        entities = read_entities(rows, session, views)
        answers = as_of(views, entities.spine, session, expire=False)
    found = {}
    for (view, _), answer in zip(grouped, answers, strict=True):
        times = answer.event.astype(object)
        times[~answer.found] = None
        found[view.projection.name_to_use()] = np.asarray(times).tolist()
    return found
