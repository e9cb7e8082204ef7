"""What a load test found: quantiles with intervals that bear bursts, and one page to look at."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np

from contracts.files import whole_file
from loop.load_driver import Driven
from serving.load_tests import LoadTest

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
_RESAMPLES = 500
_LEAST_FOR_CANARY = 20
_WIDTH, _HEIGHT, _MARGIN = 760, 260, 48


def summarized(driven: Driven, rate: float) -> LoadTest:
    """Figures of a load test; a request that failed counts with the time it took to fail."""
    failed = (driven.status == 0) | (driven.status >= 500)
    canary = driven.latency_ms[driven.canary]
    late = driven.late_ms[np.isfinite(driven.late_ms)]
    return LoadTest(
        requests=len(driven.status),
        rate=rate,
        seconds=float(driven.seconds),
        failed=int(failed.sum()),
        refused=int(((driven.status >= 400) & (driven.status < 500)).sum()),
        quantiles=quantile_intervals(driven.latency_ms),
        late_p99_ms=float(np.quantile(late, 0.99)) if len(late) else float("inf"),
        canary_requests=len(canary),
        canary_p99_ms=float(np.quantile(canary, 0.99)) if len(canary) >= _LEAST_FOR_CANARY else None,
    )


def quantile_intervals(latency_ms: np.ndarray, *, seed: int = 7) -> dict[str, tuple[float, float, float]]:
    """Name to (value, low, high) of each quantile of `QUANTILES`, with a 95 % bootstrap interval.

    Slow requests come in bursts, so whole stretches of neighbours are drawn, each of about the square root of their
    number: drawing single requests would promise more than the test has seen.
    """
    count = len(latency_ms)
    block = max(1, round(count**0.5))
    starts = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, -(-count // block)))
    drawn = (starts[:, :, None] + np.arange(block)) % count
    levels = list(QUANTILES.values())
    resampled = np.quantile(latency_ms[drawn.reshape(_RESAMPLES, -1)[:, :count]], levels, axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
    found = np.quantile(latency_ms, levels)
    return {name: (float(found[i]), float(low[i]), float(high[i])) for i, name in enumerate(QUANTILES)}


def write_page(path: Path, title: str, driven: Driven, test: LoadTest, budget_ms: float) -> None:
    """One self-contained HTML page: the figures, every request's latency over time, the latency at each percentile."""
    rows = "".join(
        f"<tr><td>{name}</td><td>{value:.2f}</td><td>{low:.2f} to {high:.2f}</td></tr>"
        for name, (value, low, high) in test.quantiles.items()
    )
    ordered = np.sort(driven.latency_ms)
    share = (np.arange(len(ordered)) + 0.5) / len(ordered)
    over_time = _dots(driven.due_s, driven.latency_ms, budget_ms, _instants(driven.due_s[-1]))
    by_share = _dots(-np.log10(1 - share), ordered, budget_ms, _percentiles(len(ordered)))
    page = f"""<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font:14px system-ui,sans-serif;margin:2em;max-width:52em}}td,th{{padding:.2em 1em .2em 0;text-align:left}}
svg{{background:#fafafa;border:1px solid #ddd;margin:.5em 0}}text{{font:11px system-ui,sans-serif;fill:#555}}</style>
<h1>{html.escape(title)}</h1>
<p>{test.requests:,} requests at {test.rate:g} a second over {test.seconds:.1f} s; {test.failed} failed,
{test.refused} were refused. The budget is {budget_ms:g} ms at p99. Latency counts from the instant a request was
due.</p>
<table><tr><th></th><th>ms</th><th>95 % interval</th></tr>{rows}</table>
<h2>Each request</h2>{over_time}<p>seconds since the beginning</p>
<h2>By percentile</h2>{by_share}<p>share of requests that were as quick</p>
"""
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")


def _instants(last_s: float) -> list[tuple[float, str]]:
    return [(last_s * part, f"{last_s * part:.0f}") for part in (0, 0.25, 0.5, 0.75, 1)]


def _percentiles(count: int) -> list[tuple[float, str]]:
    shown = ((0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"))
    return [(-np.log10(1 - share), text) for share, text in shown if count * (1 - share) >= 1]


def _dots(x: np.ndarray, y_ms: np.ndarray, budget_ms: float, marks: list[tuple[float, str]]) -> str:
    """A scatter in SVG, latency on a logarithmic axis, with the budget as a line; `marks` are (x, text)."""
    low, high = np.log10(max(min(y_ms.min(), budget_ms) * 0.8, 0.01)), np.log10(max(y_ms.max(), budget_ms) * 1.2)
    last, right = max(float(x.max()), 1e-9), _WIDTH - _MARGIN

    def across(value: float) -> float:
        return _MARGIN + (right - _MARGIN) * value / last

    def up(value_ms: float) -> float:
        return _HEIGHT - _MARGIN / 2 - (_HEIGHT - _MARGIN) * (np.log10(max(value_ms, 0.01)) - low) / (high - low)

    def level(value_ms: float, text: str, style: str) -> str:
        at = up(value_ms)
        line = f'<line x1="{_MARGIN}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" {style}/>'
        return f'{line}<text x="2" y="{at + 4:.1f}">{text}</text>'

    shown = [each for each in (0.1, 1, 10, 100, 1000, 10_000) if low <= np.log10(each) <= high]
    levels = "".join(level(each, f"{each:g} ms", 'stroke="#ddd"') for each in shown)
    budget = level(budget_ms, "budget", 'stroke="#c33" stroke-dasharray="4"')
    dots = "".join(
        f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="1.3" fill="#36c"/>' for a, b in zip(x, y_ms, strict=True)
    )
    below = "".join(
        f'<text x="{across(value):.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{text}</text>' for value, text in marks
    )
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{levels}{budget}{dots}{below}</svg>'
