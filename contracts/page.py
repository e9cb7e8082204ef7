"""What every page this project draws is made of: one style, light and dark, tables, and shapes of inline SVG.

A page needs nothing else: no script, no font, no file, no network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

BLUE, ORANGE, GREEN, GREY, RULE = "var(--blue)", "var(--orange)", "var(--green)", "var(--grey)", "var(--rule)"
"""Colours of shapes; each has a light and a dark form."""
STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #46535f; --paper: #fff; --rule: #e3e8ec; --grey: #b9c4cd;
  --blue: #2f6f9f; --orange: #c2630a; --green: #2d7d46; --bad: #b3261e; --warn: #ffe2a8; --warn-ink: #5b3a00;
  --good: #d3ecd9; --good-ink: #14532d; --quiet: #e3e8ec; --quiet-ink: #33404c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #a9b6c2; --paper: #14191f; --rule: #2c3641;
  --grey: #5b6875; --blue: #6db3e8; --orange: #f0a04b; --green: #6cc58a; --bad: #c0392f; --warn: #5b4310;
  --warn-ink: #ffe2a8; --good: #1d4a2c; --good-ink: #c9f0d4; --quiet: #2c3641; --quiet-ink: #cfd8e0; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: .95rem; margin: 1rem 0 .2rem; }
p, li { color: var(--soft); } p { margin: .3rem 0 .8rem; } ul { padding-left: 1.2rem; margin: .3rem 0 .8rem; }
strong { color: var(--ink); }
table { border-collapse: collapse; width: 100%; font-size: .87rem; overflow-wrap: normal; }
th, td { text-align: left; padding: .32rem .6rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; color: var(--soft); }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: .85em ui-monospace, monospace; } .hash { overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--soft); }
.tag { border-radius: 3px; padding: .05rem .45rem; font-weight: 600; font-size: .8rem; white-space: nowrap; }
.blocking, .fail { background: var(--bad); color: #fff; } .warning, .inconclusive { background: var(--warn);
  color: var(--warn-ink); } .info { background: var(--quiet); color: var(--quiet-ink); }
.pass { background: var(--good); color: var(--good-ink); }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.wide { overflow-x: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: .4rem 2rem; }
.plots figure { margin: 0; max-width: 34rem; } figcaption { font-size: .87rem; color: var(--soft); }
"""
"""Of the whole page."""


def html_page(title: str, parts: Iterable[str]) -> str:
    """A whole page; the parts are HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table that scrolls by itself where it is too wide; cells are HTML, columns text.

    Args:
        columns: heads.
        rows: cells.
        numbers: columns that are set to the right.
    """

    def cells(kind: str, values: Iterable[str]) -> str:
        return "".join(
            f"<{kind}{' class=n' if at in numbers else ''}>{value}</{kind}>" for at, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    head = cells("th", map(escape, columns))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def tag(kind: str, word: str) -> str:
    """A word on a coloured ground: blocking, warning, info, pass, fail, inconclusive."""
    return f'<span class="tag {kind}">{escape(word)}</span>'


def svg(wide: float, tall: float, parts: Iterable[str], label: str = "") -> str:
    """A drawing; `label` is what it is called where it cannot be seen."""
    named = f' aria-label="{escape(label)}"' if label else ""
    return f'<svg viewBox="0 0 {wide:.0f} {tall:.0f}" role="img"{named}>{"".join(parts)}</svg>'


def rect(x: float, y: float, wide: float, tall: float, fill: str, title: str, *, opacity: float = 1) -> str:
    """A rectangle that says `title` when it is pointed at."""
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" fill="{fill}" stroke="{RULE}"'
    clear = "" if opacity == 1 else f' fill-opacity="{opacity:.3f}"'
    return f"<rect {shape}{clear}><title>{escape(title)}</title></rect>"


def circle(x: float, y: float, fill: str, title: str, *, radius: float = 5) -> str:
    """A dot that says `title` when it is pointed at."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}"><title>{escape(title)}</title></circle>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dashed: bool = False) -> str:
    """A straight line."""
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"{dashes}/>'


def path(points: Iterable[tuple[float, float]], colour: str) -> str:
    """A line through points."""
    told = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{told}" fill="none" stroke="{colour}" stroke-width="2"/>'


def area(points: Iterable[tuple[float, float]], colour: str) -> str:
    """A closed shape in a faint colour."""
    told = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polygon points="{told}" fill="{colour}" fill-opacity="0.16"/>'


def words(x: float, y: float, text: str, anchor: str = "start") -> str:
    """Text that starts, ends or is centred ("middle") at x."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def dot(fill: str) -> str:
    """A dot within text, as a legend."""
    return f'<svg style="width:.7em;height:.7em" viewBox="0 0 10 10"><circle cx="5" cy="5" r="5" fill="{fill}"/></svg>'
