"""An application asked in process as a browser asks, and what a headless Chromium makes of a page."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx

_PROBE = r"""<script>
addEventListener("load", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
  const seen = each => { const box = each.getBoundingClientRect(); return box.width > 0 && box.height > 0; };
  const channels = colour => colour.match(/[\d.]+/g).map(Number);
  const over = (above, below) => above[3] === undefined ? above : above.slice(0, 3).map(
    (value, at) => value * above[3] + below[at] * (1 - above[3]));
  const ground = each => {
    if (!each) return [255, 255, 255];
    const own = channels(getComputedStyle(each).backgroundColor);
    return own[3] === 0 ? ground(each.parentElement) : over(own, ground(each.parentElement));
  };
  const light = colour => colour.slice(0, 3).map(value => value / 255).map(
    value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4).reduce(
    (sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const contrast = each => {
    const style = getComputedStyle(each);
    const [a, b] = [channels(each.closest("svg") ? style.fill : style.color), ground(each)].map(light);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const written = [...document.querySelectorAll("body *")].filter(each => seen(each) && !each.matches("title, script")
    && [...each.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()));
  const reached = [...document.querySelectorAll("a[href], button, input:not([type=hidden]), summary, [tabindex]")];
  const frame = document.createElement("pre");
  frame.id = "probe";
  frame.textContent = JSON.stringify({
    wide: document.documentElement.scrollWidth, room: innerWidth,
    ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.querySelector("h1")).color,
    plots: [...document.querySelectorAll("figure > svg")].filter(seen).length,
    fetched: performance.getEntriesByType("resource").map(each => each.name),
    faint: written.filter(each => contrast(each) < 4.5).map(each => `${each.tagName} ${each.textContent.slice(0, 40)}`),
    unreachable: reached.filter(each => { each.focus(); return document.activeElement !== each; }).map(
      each => each.outerHTML.slice(0, 80)),
    unseen_focus: reached.filter(each => { each.focus({focusVisible: true});
      return getComputedStyle(each).outlineStyle === "none"; }).map(each => each.outerHTML.slice(0, 80)),
    nameless: reached.filter(each => !(each.getAttribute("aria-label") || each.textContent.trim() || each.labels?.length
      )).map(each => each.outerHTML.slice(0, 80)),
    letters: Math.min(...[...document.querySelectorAll("figure > svg text")].map(
      each => each.getBoundingClientRect().height)),
  });
  document.body.append(frame);
});
</script>"""


def look(chromium: str, tmp_path: Path, page: str, *, dark: bool, width: int = 390) -> dict[str, Any]:
    """What a browser makes of a page on a screen of that many CSS pixels, every detail of it opened."""
    (tmp_path / "card.html").write_text(page.replace("</body>", _PROBE + "</body>"))
    frame = f'<body style="margin:0"><iframe id="phone" src="card.html" width="{width}" height="800"></iframe>'
    copy = """<script>addEventListener("load", () => setTimeout(() => {
        document.title = document.getElementById("phone").contentDocument.getElementById("probe").textContent;
    }, 50));</script>"""
    (tmp_path / "phone.html").write_text(f"<!doctype html><html><head></head>{frame}{copy}</body></html>")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--no-first-run"]
    arguments += [
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]
    arguments += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [chromium, *arguments, f"file://{tmp_path / 'phone.html'}"], capture_output=True, text=True, timeout=120
    )
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    return json.loads(title[1].replace("&amp;", "&"))


class Browser:
    """Asks an application as a browser would, on the address that it is opened under."""

    def __init__(self, app: Any, root_path: str = "") -> None:
        self.app, self.root_path = app, root_path

    def __call__(self, method: str, path: str, **how: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, root_path=self.root_path)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
                return await client.request(method, path, **how)

        return asyncio.run(send())

    def get(self, path: str, **how: Any) -> httpx.Response:
        return self("GET", path, **how)

    def post(self, path: str, **how: Any) -> httpx.Response:
        return self("POST", path, **how)
