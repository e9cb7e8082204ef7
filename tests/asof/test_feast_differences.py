"""What docs/feast-differences.md says is shown by the tests it names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/feast-differences.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| what")]


def test_every_test_named_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) >= len(ROWS)
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert missing == []


def test_every_row_names_a_test_that_shows_it():
    assert [row for row in ROWS if "::test_" not in row] == []
    assert {row.count(" | ") for row in ROWS} == {4}
