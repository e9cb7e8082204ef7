"""docs/runbook.md has an entry for whatever may ask for a person, and none for what cannot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from monitoring.decision import Rule
from monitoring.findings import Kind

PAGE = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
ENTRIES = dict(re.findall(r"^### Alert `(\w+)`\n(.*?)(?=^##)", PAGE, flags=re.DOTALL | re.MULTILINE))


def test_every_kind_of_alert_has_an_entry_and_no_other_has() -> None:
    assert set(ENTRIES) == set(get_args(Kind))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_an_entry_says_what_why_and_what_to_do(kind: str) -> None:
    parts = re.findall(r"^- \*\*(\w+)\*\*: ?(.*)", ENTRIES[kind], flags=re.MULTILINE)
    assert [name for name, _ in parts] == ["What", "Why", "Do"]


def test_every_rule_of_the_decision_is_told_and_no_other_is() -> None:
    table = PAGE.partition("## What monitoring decided")[2].partition("###")[0]
    rules = {
        name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for name in re.findall("`(.*?)`", row)
    }
    assert rules == set(get_args(Rule))
