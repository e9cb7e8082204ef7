"""The container file installs what `make setup` does, copies what is there, and runs what exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

from loop.cli import main
from serving.access_gate import OPEN

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Containerfile"


def instructions() -> list[tuple[str, str]]:
    """Each instruction and what follows it, comments left out and continued lines joined."""
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for line in joined.splitlines() if line for word, _, rest in [line.partition(" ")]]


def told(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def copied() -> list[str]:
    """What is copied from the repository."""
    return [name for rest in told("COPY") if not rest.startswith("--from") for name in shlex.split(rest)[:-1]]


def made() -> list[str]:
    """The commands of `make setup`, its variables put in, for the extra of production."""
    command = ["make", "--dry-run", "--always-make", "setup", "EXTRAS=production", "PYTHON=python3", "PIP_FIND_LINKS="]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_it_installs_by_the_lines_of_make_setup() -> None:
    installing = [line for line in made() if "pip install" in line]
    assert len(installing) == 2
    assert [run for run in told("RUN") if "pip install" in run] == installing
    [creating] = [run for run in told("RUN") if " -m venv " in run]
    assert creating in " ".join(made())


def test_what_it_copies_is_there_and_every_package_is_copied() -> None:
    assert [name for name in copied() if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    files = {"pyproject.toml", "constraints.txt", project["project"]["readme"], *project["project"]["license-files"]}
    assert set(copied()) == packages | files
    # An editable install remembers where the sources were: they must be at the same place in the image that runs.
    [workdir, _] = told("WORKDIR")
    assert f"--from=build {workdir} {workdir}" in told("COPY")


def test_the_engine_is_sent_what_is_copied_and_nothing_else() -> None:
    lines = FILE.with_name("Containerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == set(copied())


def test_the_base_is_the_python_of_the_project_and_the_user_has_no_rights() -> None:
    assert {base.split()[0] for base in told("FROM")} == {"python:3.11-slim"}
    [user] = told("USER")
    assert int(user) >= 1000
    assert f"--uid {user} " in " ".join(told("RUN"))


def test_its_command_and_its_health_check_ask_the_same_port() -> None:
    [command] = [json.loads(rest) for rest in told("CMD")]
    assert command[0] == "skewless"
    serve = main.commands[command[1]]
    parsed = serve.make_context(command[1], command[2:]).params
    [check] = told("HEALTHCHECK")
    asked = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", check)
    assert asked is not None
    assert int(asked[1]) == parsed["port"] == int(told("EXPOSE")[0])
    assert asked[2] in OPEN  # without a token
    probe = json.loads(check.partition("CMD ")[2])
    assert probe[:2] == ["python", "-c"]
    compile(probe[2], "healthcheck", "exec")
