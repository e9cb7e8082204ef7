"""docs/bring-your-own.md, command by command, on the repository that `feast init` makes.

The commands of `feast` and `skewless` run in this process, so that Feast is imported once; what they serve is served by
a replica in this process too, over HTTP, without Ray around it. Everything else goes through a shell.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from feast.cli.cli import cli as feast

from contracts.state import open_state
from loop.cli import main
from serving.rollout_state import read_history
from tests.loop.conftest import Serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own.md"
PORT = "8000"
"""On the page; a free one takes its place here."""


def commands(page: str) -> Iterator[str]:
    """Each command of the page's shell blocks, a here-document with its lines."""
    for block in re.findall(r"^```sh\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE):
        lines = iter(block.splitlines())
        for line in lines:
            here = re.search(r"<<'(\w+)'", line)
            if here:
                line = "\n".join([line, *iter(lambda: next(lines), here[1]), here[1]])  # noqa: B023
            yield line


class Shell:
    """Runs what the page says to run, and keeps what it printed."""

    def __init__(self, folder: Path, port: str) -> None:
        self.folder, self._port = folder, port
        self.said: dict[str, str] = {}
        self._serving: Serving | None = None
        self._environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(self, command: str) -> None:
        asked = command.replace(f":{PORT}/", f":{self._port}/")
        words = shlex.split(asked) if "\n" not in asked else []
        if words[:1] == ["cd"]:
            self.folder = self.folder / words[1]
        elif words == ["skewless", "serve"]:
            self._serving = Serving(self.folder, self.folder / "data", port=int(self._port), clock="system")
        elif words[:1] in (["skewless"], ["feast"]):
            with contextlib.chdir(self.folder):
                done = CliRunner().invoke(main if words[0] == "skewless" else feast, words[1:])
            assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
            self.said[command] = done.output
        else:
            ran = subprocess.run(
                ["bash", "-ec", asked], cwd=self.folder, env=self._environment, capture_output=True, text=True
            )
            assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
            self.said[command] = ran.stdout

    def close(self) -> None:
        if self._serving is not None:
            self._serving.stop()


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The page, from its first command to its last."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shell = Shell(tmp_path_factory.mktemp("own"), port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.start.start", Serving)
        try:
            for command in commands(PAGE.read_text()):
                shell.run(command)
            yield shell
        finally:
            shell.close()


def said(shell: Shell, begin: str) -> str:
    [found] = [text for command, text in shell.said.items() if command.startswith(begin)]
    return found


def test_the_version_passes_its_gates_and_has_a_card(followed: Shell) -> None:
    assert "candidate" in said(followed, "skewless train")
    card = Path(said(followed, "skewless card").strip().splitlines()[-1])
    assert "Will the driver accept the trip that is offered?" in card.read_text()


def test_the_whole_way_makes_it_champion_and_serves_what_training_sees(followed: Shell) -> None:
    told = re.sub(r"\s+", " ", said(followed, "skewless run"))
    assert "champion" in told
    assert "0 mismatches" in told
    with open_state(f"sqlite:///{followed.folder / 'data' / 'state.db'}").connect() as connection:
        assert "champion" in [move.to_stage for move in read_history(connection, "trip_accepted")]


def test_it_answers_for_a_driver_as_of_now(followed: Shell) -> None:
    answer = said(followed, "curl")
    assert answer.count('"score"') == 2
    assert '"variant":"champion"' in answer.replace(" ", "")


def test_it_is_watched(followed: Shell) -> None:
    told = re.sub(r"[\s│┃]+", " ", said(followed, "skewless monitor"))
    assert "action" in told
    assert "values" in said(followed, "skewless skew")


def test_every_block_of_the_page_is_a_shell_block() -> None:
    assert set(re.findall(r"^```(\w+)$", PAGE.read_text(), flags=re.MULTILINE)) == {"sh"}
