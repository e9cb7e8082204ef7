"""The console's plots, drawn as inline SVG: performance over time with the floor, and drift as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape

from contracts.page import BLUE, GREEN, GREY, ORANGE, dot, rect, words
from contracts.plot import Plot
from monitoring.console_state import Cell, Point, TaskState, excess
from monitoring.console_words import day, number, percent

_LETTER = 6.1
_CELL_WIDE, _CELL_TALL, _GAP = 18.0, 15.0, 2.0
_TOP_ROOM, _RIGHT_ROOM = 20.0, 24.0


def performance(state: TaskState) -> str:
    """Estimated and realized performance by chunk, and the floor; empty when there is nothing to draw."""
    points, metric, floor = state.points, state.task.success.metric, state.task.monitoring.performance_floor
    if not points:
        return ""
    starts = sorted({point.start for point in points})
    place = {start: float(at) for at, start in enumerate(starts)}
    values = [floor]
    for point in points:
        values += [v for v in (point.estimated, point.low, point.high, point.realized) if v is not None]
    room = 0.08 * (max(values) - min(values) or 1)
    step = max(1, -(-len(starts) // 6))
    ticks = [(place[start], f"{start:%m-%d}") for start in starts[::step]]
    plot = Plot(
        (-0.5, max(len(starts) - 0.5, 0.5)),
        (min(values) - room, max(values) + room),
        x_name="begins (UTC)",
        ticks=ticks,
    )
    versions = sorted({point.version for point in points})
    for version in versions:
        own = [point for point in points if point.version == version]
        _estimated(plot, own, place)
        if version != versions[0]:
            at = place[own[0].start] - 0.5
            plot.straight((at, min(values) - room), (at, max(values) + room), GREY, dashed=True)
            plot.note(at, f"v{version}")
    plot.straight((-0.5, floor), (len(starts) - 0.5, floor), ORANGE, width=1.5, dashed=True)
    for version in versions:
        _realized(plot, [point for point in points if point.version == version], place, state)
    pending = any(point.realized is not None and not point.settled for point in points)
    later = f", {dot(GREY)} labels still coming" if pending else ""
    caption = f"{dot(BLUE)} estimated, with its band; {dot(GREEN)} realized{later}; {dot(ORANGE)} the floor, {floor:g}."
    return plot.figure(f"{metric} over time", caption)


def _estimated(plot: Plot, points: Sequence[Point], place: Mapping[datetime, float]) -> None:
    band = [(place[p.start], p.low, p.high) for p in points if p.low is not None and p.high is not None]
    if len(band) > 1:
        plot.band(band, BLUE)
    line = [(place[p.start], p.estimated) for p in points if p.estimated is not None]
    if len(line) > 1:
        plot.line(line, BLUE)
    for point in points:
        if point.estimated is not None:
            title = f"{day(point.start)}, version {point.version}: estimated {number(point.estimated)}"
            plot.dot(place[point.start], point.estimated, BLUE, title, radius=2.5)


def _realized(plot: Plot, points: Sequence[Point], place: Mapping[datetime, float], state: TaskState) -> None:
    settled = [(place[p.start], p.realized) for p in points if p.realized is not None and p.settled]
    if len(settled) > 1:
        plot.line(settled, GREEN)
    for point in points:
        if point.realized is not None:
            side = ", beyond the floor" if state.beyond_floor(point.realized) else ""
            known = "" if point.settled else f", {percent(point.maturity)} of the labels known"
            title = f"{day(point.start)}, version {point.version}: realized {number(point.realized)}{side}{known}"
            plot.dot(place[point.start], point.realized, GREEN if point.settled else GREY, title)


def heat_map(drift: Mapping[str, Sequence[Cell]], label: str) -> str:
    """A row a feature, a column a chunk: blue below what is usual, orange from there on. Empty without features."""
    if not drift:
        return ""
    starts = sorted({cell.start for cells in drift.values() for cell in cells})
    column = {start: at for at, start in enumerate(starts)}
    left = 14 + _LETTER * max(len(name) for name in drift)
    wide = left + (_CELL_WIDE + _GAP) * len(starts) + _RIGHT_ROOM
    tall = _TOP_ROOM + (_CELL_TALL + _GAP) * len(drift) + 2
    parts = []
    step = max(1, -(-42 // int(_CELL_WIDE + _GAP)))
    for start in starts[::step]:
        at = left + column[start] * (_CELL_WIDE + _GAP) + _CELL_WIDE / 2
        parts.append(words(at, 12, f"{start:%m-%d}", "middle"))
    for row, (name, cells) in enumerate(drift.items()):
        y = _TOP_ROOM + row * (_CELL_TALL + _GAP)
        parts.append(words(left - 8, y + _CELL_TALL - 4, name, "end"))
        for cell in cells:
            parts.append(_square(left + column[cell.start] * (_CELL_WIDE + _GAP), y, name, cell))
    return (
        f'<svg class="heat" viewBox="0 0 {wide:.0f} {tall:.0f}" width="{wide:.0f}" height="{tall:.0f}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _square(x: float, y: float, name: str, cell: Cell) -> str:
    times = excess(cell)
    if times is None:
        return rect(x, y, _CELL_WIDE, _CELL_TALL, "none", f"{name}, {day(cell.start)}: no value at all")
    said = f"{name}, {day(cell.start)}: {number(cell.value)}, usual up to {number(cell.threshold)}"
    if cell.drifted:
        strength = 0.45 + 0.55 * min(1.0, max(0.0, times - 1))
        return rect(x, y, _CELL_WIDE, _CELL_TALL, ORANGE, f"{said}: drifted", opacity=strength)
    return rect(x, y, _CELL_WIDE, _CELL_TALL, BLUE, said, opacity=0.06 + 0.3 * min(1.0, max(0.0, times)))
