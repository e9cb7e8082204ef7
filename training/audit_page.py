"""An audit as one HTML page that needs nothing else: tables, and charts drawn as inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from html import escape

from contracts.duration import show_duration
from training.audit import AuditReport, FeatureProfile
from training.audit_sources import SourceState
from training.findings import RULES

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff; margin: 2rem auto; max-width: 62rem;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { margin: .3rem 0 .8rem; color: #46535f; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; }
th, td { text-align: left; padding: .32rem .6rem; border-bottom: 1px solid #e3e8ec; vertical-align: top; }
th { font-weight: 600; color: #46535f; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font: .85em ui-monospace, monospace; }
.tag { border-radius: 3px; padding: .05rem .45rem; font-weight: 600; font-size: .8rem; white-space: nowrap; }
.blocking { background: #b3261e; color: #fff; } .warning { background: #ffe2a8; color: #5b3a00; }
.info { background: #e3e8ec; color: #33404c; } .pass { background: #d3ecd9; color: #14532d; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: #46535f; }
.wide { overflow-x: auto; }
"""
_BLUE, _ORANGE, _GREY = "#2f6f9f", "#d97706", "#cfd8df"
_CHART = 900
_LABELS = 210
_MOST_POWERS = 30


def audit_page(report: AuditReport) -> str:
    """The page's text."""
    parts = [
        _head(report),
        "<h2>Findings</h2>",
        _findings(report),
        "<h2>Cases and label over time</h2>",
        f"<p>{report.rows:,} labelled cases; the line is the mean label.</p>",
        _cases(report),
        "<h2>What single features know</h2>",
        _powers(report),
        "<h2>Missing values over time</h2>",
        "<p>Share of rows without a value, from none (white) to all (dark); features that are never missing are left "
        "out.</p>",
        _missing(report),
        "<h2>Sources</h2>",
        _sources(report.sources),
        "<h2>Features</h2>",
        _features(report.features),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>Audit of {escape(report.task)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _head(report: AuditReport) -> str:
    count = len(report.blocking)
    word = f"{count} blocking finding{'s' if count > 1 else ''}: nothing is fitted" if count else "nothing blocks"
    verdict = f'<span class="tag {"blocking" if count else "pass"}">{word}</span>'
    return (
        f"<h1>Audit of <code>{escape(report.task)}</code></h1>"
        f"<p>Cases asked about from {report.start:%F %H:%M} to {report.cutoff:%F %H:%M} UTC, as known at the end. "
        f"{verdict}</p>"
    )


def _findings(report: AuditReport) -> str:
    if not report.findings:
        return f"<p>None of {len(RULES)} rules complains.</p>"
    rows = [
        (
            f'<span class="tag {finding.severity}">{finding.severity}</span>',
            f'<span title="{escape(RULES[finding.rule])}">{escape(finding.rule)}</span>',
            f"<code>{escape(finding.subject)}</code>",
            escape(finding.evidence),
            escape(finding.action),
        )
        for finding in report.findings
    ]
    return _table(("", "rule", "feature or view", "evidence", "what to do"), rows)


def _cases(report: AuditReport) -> str:
    height, left, right, top = 190, 50, 40, 10
    count, most = len(report.rows_by_bucket), max(report.rows_by_bucket) or 1
    step, floor = (_CHART - left - right) / count, height - 25
    tall = floor - top
    parts = []
    for index, rows in enumerate(report.rows_by_bucket):
        size = tall * rows / most
        span = f"{_bucket(report, index):%F %H:%M}: {rows:,} cases"
        parts.append(_rect(left + index * step + 1, floor - size, step - 2, size, _GREY, span))
    labels = [value for value in report.label_by_bucket if value is not None]
    low, high = min([0.0, *labels]), max([1e-9, *labels]) * 1.1
    scale = tall / (high - low)
    points = [
        (left + (index + 0.5) * step, floor - (value - low) * scale)
        for index, value in enumerate(report.label_by_bucket)
        if value is not None
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{_BLUE}" stroke-width="2"/>')
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{_BLUE}"/>' for x, y in points]
    parts.append(_text(left - 6, top + 10, f"{most:,}", "end") + _text(left - 6, floor, "0", "end"))
    parts.append(_text(_CHART - right + 6, top + 10, f"{high:.3g}") + _text(_CHART - right + 6, floor, f"{low:.3g}"))
    parts += _dates(report, left, _CHART - right, height - 6)
    return _svg(height, parts)


def _powers(report: AuditReport) -> str:
    known = [feature for feature in report.features if feature.auc is not None]
    chosen = sorted(known, key=lambda feature: -(feature.auc or 0))[:_MOST_POWERS]
    if not chosen:
        return "<p>Too few cases to tell.</p>"
    shift = show_duration(report.shift)
    text = (
        f"<p>ROC AUC of one feature alone: now ({_dot(_BLUE)}) and with its value {shift} earlier ({_dot(_ORANGE)}). "
        f"Recent knowledge fades; what is almost perfect, or strong and gone {shift} earlier, is suspect. "
        f"The {len(chosen)} strongest of {len(report.features)}.</p>"
    )
    row, top = 18, 22
    height = top + row * len(chosen) + 8
    wide = _CHART - _LABELS - 30
    parts = []
    for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        x = _LABELS + (tick - 0.5) * 2 * wide
        parts.append(f'<line x1="{x:.1f}" y1="{top - 6}" x2="{x:.1f}" y2="{height - 8}" stroke="#e3e8ec"/>')
        parts.append(_text(x, 12, f"{tick:.1f}", "middle"))
    for index, feature in enumerate(chosen):
        y = top + row * (index + 0.5)
        now = _LABELS + ((feature.auc or 0.5) - 0.5) * 2 * wide
        parts.append(_text(_LABELS - 8, y + 4, feature.name, "end"))
        if feature.auc_earlier is not None:
            then = _LABELS + (feature.auc_earlier - 0.5) * 2 * wide
            parts.append(f'<line x1="{then:.1f}" y1="{y}" x2="{now:.1f}" y2="{y}" stroke="{_GREY}" stroke-width="3"/>')
            parts.append(_circle(then, y, _ORANGE, f"{feature.name}, {shift} earlier: {feature.auc_earlier:.4f}"))
        parts.append(_circle(now, y, _BLUE, f"{feature.name}: {feature.auc:.4f}"))
    return text + _svg(height, parts)


def _missing(report: AuditReport) -> str:
    shown = [feature for feature in report.features if feature.missing]
    if not shown:
        return "<p>No feature ever is.</p>"
    row, top = 15, 6
    height = top + row * len(shown) + 22
    count = len(report.rows_by_bucket)
    step = (_CHART - _LABELS - 60) / count
    parts = []
    for line, feature in enumerate(shown):
        y = top + row * line
        parts.append(_text(_LABELS - 8, y + 11, feature.name, "end"))
        parts.append(_text(_CHART - 52, y + 11, f"{feature.missing:.1%}"))
        for index, share in enumerate(feature.missing_by_bucket):
            told = "no cases" if share is None else f"{share:.1%} missing"
            title = f"{feature.name}, {_bucket(report, index):%F %H:%M}: {told}"
            parts.append(_rect(_LABELS + index * step, y, step - 1, row - 2, _shade(share), title))
    parts += _dates(report, _LABELS, _CHART - 60, height - 6)
    return _svg(height, parts)


def _sources(sources: Sequence[SourceState]) -> str:
    if not sources:
        return "<p>Not looked at: the frame was put together by hand.</p>"
    rows = []
    for source in sources:
        limit = "no limit" if source.limit is None else f"{_span(source.limit)} ({source.limit_from})"
        late = source.late / source.in_window if source.in_window else 0
        rows.append(
            (
                f"<code>{escape(source.view)}</code>",
                f"{source.rows:,}",
                f"{source.in_window:,}",
                "" if source.newest is None else f"{_EPOCH + timedelta(microseconds=source.newest):%F %H:%M}",
                "" if source.age is None else _span(source.age),
                escape(limit),
                f"{late:.1%}",
                f"{_span(source.delays[0])} / {_span(source.delays[1])} / {_span(source.delays[2])}",
                f"{source.covered:.1%}",
            )
        )
    columns = ("view", "rows", "in window", "newest", "age", "stale beyond", "late")
    return _table((*columns, "delay: median / 95 % / longest", "rows covered"), rows, numbers=(1, 2, 6, 8))


def _features(features: Sequence[FeatureProfile]) -> str:
    rows = [
        (
            f"<code>{escape(feature.name)}</code>",
            escape(feature.view),
            escape(feature.declared or feature.kind),
            f"{feature.missing:.1%}",
            f"{feature.distinct:,}",
            "" if feature.auc is None else f"{feature.auc:.4f}",
            "" if feature.auc_earlier is None else f"{feature.auc_earlier:.4f}",
        )
        for feature in features
    ]
    columns = ("feature", "view", "type", "missing", "different values", "ROC AUC alone", "earlier")
    return _table(columns, rows, numbers=(3, 4, 5, 6))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=n' if at in numbers else ''}>{cell}</td>" for at, cell in enumerate(row))
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _dates(report: AuditReport, left: float, right: float, y: float) -> list[str]:
    shown = [("start", report.start, left), ("end", report.cutoff, right)]
    middle = report.start + (report.cutoff - report.start) / 2
    return [_text(x, y, f"{at:%F}", anchor) for anchor, at, x in [*shown, ("middle", middle, (left + right) / 2)]]


def _bucket(report: AuditReport, index: int) -> datetime:
    return report.start + (report.cutoff - report.start) * index / len(report.rows_by_bucket)


def _shade(share: float | None) -> str:
    if share is None:
        return "#f1f3f5"
    light, dark = (255, 255, 255), (31, 78, 121)
    mixed = (round(a + (b - a) * share**0.7) for a, b in zip(light, dark, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _svg(height: float, parts: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {_CHART} {height:.0f}" role="img">{"".join(parts)}</svg>'


def _rect(x: float, y: float, wide: float, tall: float, fill: str, title: str) -> str:
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" fill="{fill}" stroke="#e3e8ec"'
    return f"<rect {shape}><title>{escape(title)}</title></rect>"


def _circle(x: float, y: float, fill: str, title: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}"><title>{escape(title)}</title></circle>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _dot(fill: str) -> str:
    return f'<svg style="width:.7em;height:.7em" viewBox="0 0 10 10"><circle cx="5" cy="5" r="5" fill="{fill}"/></svg>'


def _span(micros: int) -> str:
    return show_duration(timedelta(seconds=micros // 1_000_000))
