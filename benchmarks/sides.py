"""One side of a comparison: a function run in a process of its own, its time and its peak memory.

Each side prints one JSON line. Sides run one after the other on the same data in one call: their ratio means something.
Memory is at hand when a side begins: where a hypervisor takes back what a guest leaves free for some seconds, whoever
touches it first pays for it, a second and more for each gigabyte, and a short side would pay more than a long one.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

MEMORY_AT_HAND = 2 << 30
"""Bytes touched before a side begins; more than most sides use."""


def measured(work: Callable[[], Any], repeat: int = 1) -> tuple[Any, dict[str, float]]:
    """Run the work; the best of `repeat` times, and the peak memory of this process (MB), base included."""
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    best, result = float("inf"), None
    for _ in range(repeat):
        result = None
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result, {"seconds": round(best, 3), "peak_mb": round(peak), "base_mb": round(base)}


def run_side(script: str, *arguments: str) -> dict[str, Any]:
    """Run `python script side ...` and read its last line."""
    # In pages of 2 MB, which is what numpy asks for: memory touched in small ones was not at hand for large ones.
    subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({MEMORY_AT_HAND}, 'u1')"], check=True)
    command = [sys.executable, "-W", "ignore", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=_environment())
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def ratio(name: str, slow: dict[str, Any], fast: dict[str, Any]) -> str:
    """A line that compares two sides."""
    if "failed" in slow or "failed" in fast:
        return f"{name}: no ratio ({slow.get('failed') or fast.get('failed')})"
    return f"{name}: {slow['seconds'] / fast['seconds']:.1f} times the time"
