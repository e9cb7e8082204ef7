"""docs/runbook.md has an entry for whatever may ask for a person, and none for what cannot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from monitoring.decision import Rule
from monitoring.findings import Kind

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "runbook.md").read_text()
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
"""Prometheus', by name."""
ENTRIES = dict(re.findall(r"^### Alert `(\w+)`\n(.*?)(?=^##)", PAGE, flags=re.DOTALL | re.MULTILINE))


def test_every_kind_of_alert_has_an_entry_and_no_other_has() -> None:
    assert set(ENTRIES) == {*get_args(Kind), *RULES}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_of_prometheus_names_its_entry(name: str) -> None:
    """The anchor is the one that a heading of a Markdown page gets."""
    assert RULES[name]["annotations"]["runbook"] == f"docs/runbook.md#alert-{name.lower()}"
    assert RULES[name]["labels"]["severity"] in ("page", "ticket")


def test_the_runbook_asks_for_no_metric_that_no_replica_tells() -> None:
    """A test of serving holds those of the rules and of the dashboard."""
    files = (ROOT / "deploy" / name for name in ("prometheus/alerts.yml", "grafana/skewless.json"))
    told = set().union(*(re.findall(r"skewless_\w+", file.read_text()) for file in files))
    assert set(re.findall(r"skewless_\w+", PAGE)) <= told


@pytest.mark.parametrize("kind", [*get_args(Kind), *RULES])
def test_an_entry_says_what_why_and_what_to_do(kind: str) -> None:
    parts = re.findall(r"^- \*\*(\w+)\*\*: ?(.*)", ENTRIES[kind], flags=re.MULTILINE)
    assert [name for name, _ in parts] == ["What", "Why", "Do"]


def test_every_rule_of_the_decision_is_told_and_no_other_is() -> None:
    table = PAGE.partition("## What monitoring decided")[2].partition("###")[0]
    rules = {
        name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for name in re.findall("`(.*?)`", row)
    }
    assert rules == set(get_args(Rule))
