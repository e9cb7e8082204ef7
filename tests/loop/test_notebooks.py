"""The notebooks: as bare as they were written in the checkout, and running on what a run leaves behind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def run(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Execute a notebook on a project; returns all it printed and showed, as text."""
    monkeypatch.setenv("SKEWLESS_PROJECT", str(project))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(_text(output) for output in outputs)


def _text(output: Any) -> str:
    if output["output_type"] == "stream":
        return str(output["text"])
    data = output["data"]
    return "<image>" if "image/png" in data else str(data["text/plain"])


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["decay_over_time", "reading_a_version", "same_vector"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_results_and_without_the_machine_it_ran_on(path):
    text = path.read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert not re.search(r"/(home|root|tmp|work|Users|opt|var)/", text)


@pytest.mark.slow
def test_without_a_run_a_notebook_says_what_to_do(tmp_path, stranger, monkeypatch):
    for folder in ("tasks", "definitions"):
        (tmp_path / folder).symlink_to(stranger / folder)
    with pytest.raises(CellExecutionError, match="`make run`"):
        run("reading_a_version", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)  # the first of these waits for the stranger's runs
class TestOnARun:
    def test_decay_over_time(self, stranger, finished, monkeypatch):
        shown = run("decay_over_time", stranger, monkeypatch)
        holdout = finished["training"]["metrics"]["roc_auc"]["value"]
        assert f"version {finished['training']['version']}, trained on what was known at 2024-01-25" in shown
        assert f"holdout roc_auc {holdout:.4f}" in shown
        assert "<image>" in shown
        assert "2024-01-31" in shown

    def test_same_vector(self, stranger, finished, monkeypatch):
        shown = run("same_vector", stranger, monkeypatch)
        [rows] = re.findall(r"^0 mismatches in [0-9,]+ values of (\d+) vectors$", shown, re.MULTILINE)
        assert 200 < int(rows) <= 500
        assert "late_share_24h" in shown

    def test_reading_a_version(self, stranger, finished, monkeypatch):
        shown = run("reading_a_version", stranger, monkeypatch)
        assert re.search(r"^0 of [0-9,]+ scores differ$", shown, re.MULTILINE)
        assert finished["training"]["dataset_hash"] in shown
        assert finished["training"]["run_id"] in shown
        assert re.search(r"^data/bundles/late_delivery/\w+-\w+\.html$", shown, re.MULTILINE)
        told = re.findall(r"^│ (never|each period) +┆ (\d+) +┆ (0\.\d+) +┆ (\d+\.\d+) +│$", shown, re.MULTILINE)
        assert [policy for policy, *_ in told] == ["never", "each period"]
        assert len({periods for _, periods, *_ in told}) == 1
        assert all(float(metric) > 0.5 for _, _, metric, _ in told)
        for move in finished["rollout"]["moves"]:
            assert f"{move['from_stage']} -> {move['to_stage']}" in shown
