"""An audit as one HTML page that needs nothing else: tables, and charts drawn as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html import escape

from contracts.duration import show_duration
from contracts.page import BLUE, GREY, ORANGE, RULE, circle, dot, html_page, line, path, rect, svg, table, tag, words
from training.audit import AuditReport, FeatureProfile
from training.audit_sources import SourceState
from training.findings import RULES

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
        "<p>Share of rows without a value, from none (empty) to all (full); features that are never missing are left "
        "out.</p>",
        _missing(report),
        "<h2>Sources</h2>",
        _sources(report.sources),
        "<h2>Features</h2>",
        _features(report.features),
    ]
    return html_page(f"Audit of {report.task}", parts)


def _head(report: AuditReport) -> str:
    count = len(report.blocking)
    word = f"{count} blocking finding{'s' if count > 1 else ''}: nothing is fitted" if count else "nothing blocks"
    verdict = tag("blocking" if count else "pass", word)
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
            tag(finding.severity, finding.severity),
            f'<span title="{escape(RULES[finding.rule])}">{escape(finding.rule)}</span>',
            f"<code>{escape(finding.subject)}</code>",
            escape(finding.evidence),
            escape(finding.action),
        )
        for finding in report.findings
    ]
    return table(("", "rule", "feature or view", "evidence", "what to do"), rows)


def _cases(report: AuditReport) -> str:
    height, left, right, top = 190, 50, 40, 10
    count, most = len(report.rows_by_bucket), max(report.rows_by_bucket) or 1
    step, floor = (_CHART - left - right) / count, height - 25
    tall = floor - top
    parts = []
    for index, rows in enumerate(report.rows_by_bucket):
        size = tall * rows / most
        span = f"{_bucket(report, index):%F %H:%M}: {rows:,} cases"
        parts.append(rect(left + index * step + 1, floor - size, step - 2, size, GREY, span))
    labels = [value for value in report.label_by_bucket if value is not None]
    low, high = min([0.0, *labels]), max([1e-9, *labels]) * 1.1
    scale = tall / (high - low)
    points = [
        (left + (index + 0.5) * step, floor - (value - low) * scale)
        for index, value in enumerate(report.label_by_bucket)
        if value is not None
    ]
    parts.append(path(points, BLUE))
    parts += [circle(x, y, BLUE, "", radius=2.5) for x, y in points]
    parts.append(words(left - 6, top + 10, f"{most:,}", "end") + words(left - 6, floor, "0", "end"))
    parts.append(words(_CHART - right + 6, top + 10, f"{high:.3g}") + words(_CHART - right + 6, floor, f"{low:.3g}"))
    parts += _dates(report, left, _CHART - right, height - 6)
    return svg(_CHART, height, parts)


def _powers(report: AuditReport) -> str:
    known = [feature for feature in report.features if feature.auc is not None]
    chosen = sorted(known, key=lambda feature: -(feature.auc or 0))[:_MOST_POWERS]
    if not chosen:
        return "<p>Too few cases to tell.</p>"
    shift = show_duration(report.shift)
    text = (
        f"<p>ROC AUC of one feature alone: now ({dot(BLUE)}) and with its value {shift} earlier ({dot(ORANGE)}). "
        f"Recent knowledge fades; what is almost perfect, or strong and gone {shift} earlier, is suspect. "
        f"The {len(chosen)} strongest of {len(report.features)}.</p>"
    )
    row, top = 18, 22
    height = top + row * len(chosen) + 8
    wide = _CHART - _LABELS - 30
    parts = []
    for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        x = _LABELS + (tick - 0.5) * 2 * wide
        parts.append(line(x, top - 6, x, height - 8, RULE))
        parts.append(words(x, 12, f"{tick:.1f}", "middle"))
    for index, feature in enumerate(chosen):
        y = top + row * (index + 0.5)
        now = _LABELS + ((feature.auc or 0.5) - 0.5) * 2 * wide
        parts.append(words(_LABELS - 8, y + 4, feature.name, "end"))
        if feature.auc_earlier is not None:
            then = _LABELS + (feature.auc_earlier - 0.5) * 2 * wide
            parts.append(line(then, y, now, y, GREY, width=3))
            parts.append(circle(then, y, ORANGE, f"{feature.name}, {shift} earlier: {feature.auc_earlier:.4f}"))
        parts.append(circle(now, y, BLUE, f"{feature.name}: {feature.auc:.4f}"))
    return text + svg(_CHART, height, parts)


def _missing(report: AuditReport) -> str:
    shown = [feature for feature in report.features if feature.missing]
    if not shown:
        return "<p>No feature ever is.</p>"
    row, top = 15, 6
    height = top + row * len(shown) + 22
    count = len(report.rows_by_bucket)
    step = (_CHART - _LABELS - 60) / count
    parts = []
    for place, feature in enumerate(shown):
        y = top + row * place
        parts.append(words(_LABELS - 8, y + 11, feature.name, "end"))
        parts.append(words(_CHART - 52, y + 11, f"{feature.missing:.1%}"))
        for index, share in enumerate(feature.missing_by_bucket):
            told = "no cases" if share is None else f"{share:.1%} missing"
            title = f"{feature.name}, {_bucket(report, index):%F %H:%M}: {told}"
            shade = GREY if share is None else BLUE
            depth = 0.15 if share is None else share**0.7
            parts.append(rect(_LABELS + index * step, y, step - 1, row - 2, shade, title, opacity=depth))
    parts += _dates(report, _LABELS, _CHART - 60, height - 6)
    return svg(_CHART, height, parts)


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
    return table((*columns, "delay: median / 95 % / longest", "rows covered"), rows, numbers=(1, 2, 6, 8))


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
    return table(columns, rows, numbers=(3, 4, 5, 6))


def _dates(report: AuditReport, left: float, right: float, y: float) -> list[str]:
    shown = [("start", report.start, left), ("end", report.cutoff, right)]
    middle = report.start + (report.cutoff - report.start) / 2
    return [words(x, y, f"{at:%F}", anchor) for anchor, at, x in [*shown, ("middle", middle, (left + right) / 2)]]


def _bucket(report: AuditReport, index: int) -> datetime:
    return report.start + (report.cutoff - report.start) * index / len(report.rows_by_bucket)


def _span(micros: int) -> str:
    return show_duration(timedelta(seconds=micros // 1_000_000))
