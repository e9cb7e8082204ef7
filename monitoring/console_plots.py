"""The console's plots, drawn as inline SVG: performance, cost and multivariate drift over time, a heat map of drift."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    points = [point for point in state.points if point.estimated is not None or point.realized is not None]
    metric, floor = state.task.success.metric, state.task.monitoring.performance_floor
    if not points:
        return ""
    values = [floor]
    for point in points:
        values += [v for v in (point.estimated, point.low, point.high, point.realized) if v is not None]
    room = 0.08 * (max(values) - min(values) or 1)
    plot, place = _over_time([point.start for point in points], min(values) - room, max(values) + room)
    by_version = _by_version(plot, points, place)
    for own in by_version:
        _estimated(plot, own, place)
    plot.straight((-0.5, floor), (len(place) - 0.5, floor), ORANGE, width=1.5, dashed=True)
    for own in by_version:
        _realized(plot, own, place, state)
    later = _later(point for point in points if point.realized is not None)
    caption = f"{dot(BLUE)} estimated, with its band; {dot(GREEN)} realized{later}; {dot(ORANGE)} the floor, {floor:g}."
    return plot.figure(f"{metric} over time", caption)


def cost(state: TaskState) -> str:
    """What a labelled case cost on average, by chunk; empty when no label has come."""
    points = [point for point in state.points if point.cost is not None]
    if not points:
        return ""
    plot, place = _over_time(
        [point.start for point in points], 0.0, 1.08 * max(p.cost_high or p.cost or 0.0 for p in points)
    )
    for own in _by_version(plot, points, place):
        band = [
            (place[p.start], p.cost_low, p.cost_high) for p in own if p.cost_low is not None and p.cost_high is not None
        ]
        if len(band) > 1:
            plot.band(band, GREEN)
        settled = [(place[p.start], p.cost) for p in own if p.cost is not None and p.settled]
        if len(settled) > 1:
            plot.line(settled, GREEN)
        for point in own:
            if point.cost is not None:
                known = "" if point.settled else f", {percent(point.maturity)} of the labels known"
                title = f"{day(point.start)}, version {point.version}: {number(point.cost, 2)}{known}"
                plot.dot(place[point.start], point.cost, GREEN if point.settled else GREY, title)
    caption = f"{dot(GREEN)} what a case with a known outcome cost on average, with its band{_later(points)}."
    return plot.figure(f"Cost of a case over time, {state.task.success.cost.currency}", caption)


def together(state: TaskState) -> str:
    """What the detectors of all features together say, in multiples of what is usual; empty when none said anything."""
    measured = {
        name: [(cell, times) for cell in cells if (times := excess(cell)) is not None]
        for name, cells in state.together.items()
    }
    starts = [cell.start for cells in measured.values() for cell, _ in cells]
    if not starts:
        return ""
    most = max(times for cells in measured.values() for _, times in cells)
    plot, place = _over_time(starts, 0.0, 1.08 * max(most, 1.0))
    plot.straight((-0.5, 1.0), (len(place) - 0.5, 1.0), ORANGE, width=1.5, dashed=True)
    told = []
    for name, (colour, says) in _DETECTORS.items():
        found = [(place[cell.start], times) for cell, times in measured.get(name, ())]
        if not found:
            continue
        told.append(f"{dot(colour)} {says}")
        if len(found) > 1:
            plot.line(found, colour)
        for cell, times in measured[name]:
            title = f"{says}, {day(cell.start)}: {number(cell.value)}, usual up to {number(cell.threshold)}"
            title += ": drifted" if cell.drifted else ""
            plot.dot(place[cell.start], times, colour, title, radius=4 if cell.drifted else 2.5)
    caption = f"{'; '.join(told)}. In multiples of the most that is usual, {dot(ORANGE)} 1; a larger dot has drifted."
    return plot.figure("All features together", caption)


_DETECTORS = {
    "reconstruction": (BLUE, "error of rebuilding rows from what usually goes together"),
    "domain_classifier": (GREEN, "how well a classifier tells them from the reference's"),
}
"""The colour and the words of each detector."""


def _over_time(starts: Iterable[datetime], low: float, high: float) -> tuple[Plot, dict[datetime, float]]:
    """A plot with a place for each chunk from left to right, however far apart they are."""
    place = {start: float(at) for at, start in enumerate(sorted(set(starts)))}
    step = max(1, -(-len(place) // 6))
    ticks = [(at, f"{start:%m-%d}") for start, at in list(place.items())[::step]]
    return Plot((-0.5, max(len(place) - 0.5, 0.5)), (low, high), x_name="begins (UTC)", ticks=ticks), place


def _by_version(plot: Plot, points: Sequence[Point], place: Mapping[datetime, float]) -> list[list[Point]]:
    """Points of each version; a dashed line where another one begins."""
    versions = sorted({point.version for point in points})
    found = [[point for point in points if point.version == version] for version in versions]
    for own in found[1:]:
        plot.upright(place[own[0].start] - 0.5, GREY)
        plot.note(place[own[0].start] - 0.5, f"v{own[0].version}")
    return found


def _later(realized: Iterable[Point]) -> str:
    return f", {dot(GREY)} labels still coming" if any(not point.settled for point in realized) else ""


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
