"""The process that holds Ray: `python -m serving.host '{"project": …}'`, started by `serving.start`.

It serves until its standard input ends (its parent closed it, or died) or it is asked to terminate, then drains and
takes every process of Ray's with it. Its output, and Ray's, goes where the parent sent it: a log file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Any

from contracts.errors import SkewlessError

FAILED = "serving failed: "
"""Begins a line of the output when serving could not start; JSON of fact and hint follows."""


def main(argument: str) -> int:
    """Serve until told to stop; 0 when that went well, 1 when serving could not start."""
    asked: dict[str, Any] = json.loads(argument)
    over = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        over.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends our input
    threading.Thread(target=_wait_for_end_of_input, args=(over,), daemon=True).start()
    from serving import app

    try:
        app.launch(asked["args"], host=asked["host"], spare_port=asked["spare_port"])
        over.wait()
    except Exception as error:
        traceback.print_exc()
        fact, hint = (error.fact, error.hint) if isinstance(error, SkewlessError) else (str(error), "")
        sys.stderr.write(f"{FAILED}{json.dumps({'fact': fact, 'hint': hint})}\n")
        return 1
    finally:
        app.shut_down()
    return 0


def _wait_for_end_of_input(over: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    over.set()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
