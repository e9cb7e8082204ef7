"""What a headless Chromium makes of a page: how wide it is, what it fetched, in which colours it stands."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

_PROBE = """<script>
addEventListener("load", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
  const seen = each => { const box = each.getBoundingClientRect(); return box.width > 0 && box.height > 0; };
  const frame = document.createElement("pre");
  frame.id = "probe";
  frame.textContent = JSON.stringify({
    wide: document.documentElement.scrollWidth, room: innerWidth,
    ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.querySelector("h1")).color,
    plots: [...document.querySelectorAll("figure > svg")].filter(seen).length,
    fetched: performance.getEntriesByType("resource").map(each => each.name),
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
