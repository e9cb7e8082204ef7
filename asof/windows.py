"""Windowed views: aggregations over (b - W, b] for every question, from one scan of the source.

b is the last slide boundary at or before the moment asked for, or that moment itself when the window does not slide.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from asof import latest
from asof.aggregate import check, keeps_type, result_type, series_length
from asof.column import Answer, Values
from asof.definition import View, Window
from asof.series import Series, as_arrays, last_values
from asof.session import Session
from asof.source import Scan
from asof.timeline import FOREVER, Timeline, axes
from asof.windowed import SumOverflow, WindowColumn, Windowed

Ints = NDArray[np.int64]


def check_windows(view: View, scan: Scan) -> None:
    """Refuse a windowed view its source cannot feed.

    Raises:
        ColumnNotFound: an aggregation over a column that is not there.
        AggregationTypeMismatch: an aggregation over a type it has no meaning for.
    """
    for window in view.windows:
        if window.column:
            scan.require(window.column, f"column of {window.function}")
            check(window.function, scan.sql_types[window.column], f"View {view.name!r}, column {window.column!r}")


def window_features(view: View, code: Ints, at: Ints, keys: str, count: int, session: Session) -> pa.Table:
    """The view's features for each question.

    Args:
        view: a windowed view.
        code: key of each question (grain Q), sorted with `at`.
        at: moment of each question, microseconds.
        keys: table (code, k0, ...) in the session.
        count: number of keys.
        session: reads the source.

    Returns:
        One column per feature, rows as the questions.
    """
    columns = sorted({window.column for window in view.windows if window.column} | set(view.series))
    until = int(at.max(initial=0))
    reach = max(window.slide + window.length for window in view.windows)
    since = int(at.min(initial=until)) - reach if reach < FOREVER else None
    slides = {window.slide for window in view.windows}
    earliest = min(
        (int(at.min(initial=until)) // slide * slide if slide else int(at.min(initial=until))) for slide in slides
    )
    timeline, values = _read(view, keys, columns, count, since, earliest, until, session)
    out: dict[str, pa.Array] = {}
    for slide in slides:
        same = [window for window in view.windows if window.slide == slide]
        boundary = at - at % slide if slide else at
        out |= _aggregate(view, same, timeline, values, code, boundary)
    return pa.table([out[feature.name] for feature in view.features], [feature.name for feature in view.features])


def _read(
    view: View,
    keys: str,
    columns: list[str],
    count: int,
    since: int | None,
    earliest: int,
    until: int,
    session: Session,
) -> tuple[Timeline, dict[str, Values]]:
    """The events and their values; what was scanned is freed on return."""
    events = _scan(view, keys, columns, since, until, session)
    code, event = events["code"].to_numpy(), events["event"].to_numpy()
    known = events["known"].to_numpy() if view.source.created else event
    if int(known.max(initial=earliest)) <= earliest and not any(w.function in ("first", "last") for w in view.windows):
        # Whoever asks knows all of it, as when every key is asked about one moment: no row is late. But which of two
        # events of one moment is the last, the time they became known says.
        known = event
    return Timeline(code, event, known, count, until), {
        column: Values(events[f"c{i}"]) for i, column in enumerate(columns)
    }


def _scan(view: View, keys: str, columns: list[str], since: int | None, until: int, session: Session) -> pa.Table:
    """Code, event, known where the source says, and the columns as c0, c1, ..."""
    lent = session.events_of(view.source)
    if lent is not None:
        return lent.scanned(session.held(keys), columns, since, until)
    sql = latest.rows_of(view, session.scan(view.source), keys, columns, since=since, until=until)
    names = ["code", "event", *(["known"] if view.source.created else []), *(f"c{i}" for i in range(len(columns)))]
    # Rows of one moment keep the order they come in: that of their values, so that arrays do not depend on the files.
    ordered = f" order by event, known, {', '.join(f'c{columns.index(c)}' for c in view.series)}" if view.series else ""
    return session.arrow(f"select {', '.join(names)} from ({sql}){ordered}")


def _one(view: View, window: Window, windowed: Windowed) -> Answer:
    try:
        return windowed.aggregate(window.function)
    except SumOverflow as error:
        raise SumOverflow(
            f"View {view.name!r}, feature {window.feature.name!r}: {error.fact}.", hint=error.hint
        ) from error


def _aggregate(
    view: View, windows: list[Window], timeline: Timeline, values: dict[str, Values], code: Ints, at: Ints
) -> dict[str, pa.Array]:
    lengths = {window.length for window in windows}
    parts: dict[str, list[Answer | Series]] = {w.feature.name: [] for w in windows}
    for batch in timeline.batches(code, at, max(lengths)):
        by_length = axes(timeline, batch, lengths)
        asked = {id(axis): axis.asked(code[batch.questions], at[batch.questions]) for axis in set(by_length.values())}
        columns: dict[tuple[int, str], WindowColumn] = {}
        for length in lengths:
            axis = by_length[length]
            ranges = axis.ranges(asked[id(axis)], length)
            windowed: dict[str, Windowed] = {}
            for window in windows:
                if window.length == length:
                    place = (id(axis), window.column)
                    if place not in columns:
                        columns[place] = WindowColumn(axis, values[window.column] if window.column else None)
                    if series := series_length(window.function):
                        parts[window.feature.name].append(
                            last_values(columns[place], ranges, at[batch.questions], series)
                        )
                        continue
                    if window.column not in windowed:
                        windowed[window.column] = Windowed(columns[place], ranges)
                    parts[window.feature.name].append(_one(view, window, windowed[window.column]))
    out = {}
    for window in windows:
        column = values[window.column].numbers.dtype if window.column else np.dtype(np.int64)
        pieces = parts[window.feature.name] or [(np.zeros(0, result_type(window.function, column)), np.zeros(0, bool))]
        numbers, exists = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
        if series_length(window.function):
            out[window.feature.name] = as_arrays(values[window.column], (numbers, exists.astype(np.int64)))
        elif keeps_type(window.function):
            out[window.feature.name] = values[window.column].restore((numbers, exists))
        else:
            out[window.feature.name] = pa.array(numbers, mask=~exists)
    return out
