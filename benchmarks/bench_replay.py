"""A replay of the flights example, and what its time goes to.

    python benchmarks/bench_replay.py                                  # April, never and weekly
    python benchmarks/bench_replay.py --from 2013-04 --to 2013-06 never monthly

One process does one piece after the other, so the shares add up; `skewless replay` has a process a core. An hour counts
for each policy it is lived under, and once more where it is served through materialization and the online store.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TASK = "late_arrival"


class Shares:
    """Seconds by what they were spent on; of work within other work, the outermost counts."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._within = False

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        if self._within:
            yield
            return
        self._within, began = True, time.perf_counter()
        try:
            yield
        finally:
            self._within = False
            self.seconds[name] += time.perf_counter() - began

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Count the time of a function or a method under a name."""
        work: Callable[..., Any] = getattr(owner, attribute)

        @functools.wraps(work)
        def timed(*args: Any, **options: Any) -> Any:
            with self.of(name):
                return work(*args, **options)

        setattr(owner, attribute, timed)


def watched() -> Shares:
    import monitoring.monitor
    import monitoring.skew
    from loop import replay, replay_caller, replay_life, replay_work
    from loop.climb import Climb
    from loop.features import Materializer

    shares = Shares()
    shares.watch(replay, "_prepare", "window and first version")
    shares.watch(replay_life, "retrain", "trainings")
    shares.watch(monitoring.monitor, "monitor", "monitoring")
    shares.watch(Climb, "after_hour", "releases judged")
    shares.watch(replay_caller.InProcess, "ask_hour", "answers and log")
    shares.watch(Materializer, "to", "materialization")
    shares.watch(monitoring.skew, "audit", "audit of what was served")
    shares.watch(replay, "_compared", "comparison and page")
    shares.watch(replay_work, "enter_here", "reading the window")
    return shares


def main() -> None:
    from loop.cli import main as skewless

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="start", default="2013-04", help="a month or an instant")
    parser.add_argument("--to", dest="end", default="2013-04", help="through this month, or until this instant")
    parser.add_argument("policies", nargs="*", default=["never", "weekly"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for part in ("feature_repo", "tasks"):
            shutil.copytree(ROOT / part, Path(folder, part))
        for command in ("ingest", "apply"):
            skewless(["-C", folder, command, TASK], standalone_mode=False)
        window = ["--from", asked.start, "--to", asked.end, "--policies", ",".join(asked.policies)]
        shares, began = watched(), time.perf_counter()
        skewless(["-C", folder, "replay", TASK, *window, "--jobs", "1"], standalone_mode=False)
        seconds = time.perf_counter() - began
        report = json.loads(next(Path(folder).glob("data/replays/*/replay.json")).read_bytes())
    hours = report["skew"]["hours"] * (1 + len(asked.policies))
    print(f"{hours:,} hours in {seconds:.0f} s: {hours / seconds:.1f} hours a second, {report['cases']:,} cases")
    shares.seconds["everything else"] = seconds - shares.seconds.total()
    for name, spent in shares.seconds.most_common():
        print(f"  {name:28} {spent:7.1f} s  {spent / seconds:4.0%}")


if __name__ == "__main__":
    main()
