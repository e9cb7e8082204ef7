import subprocess
import sys

import pytest
from click.testing import CliRunner

from loop.cli import main


def invoke(*args: str):
    return CliRunner().invoke(main, [str(each) for each in args])


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_every_command_explains_itself(path):
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 3


def test_help_imports_no_framework():
    code = "import sys, loop.cli; print([m for m in ('feast','ray','mlflow','nannyml','lightgbm') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_typo_in_a_task_file_is_one_screen_and_exit_status_2(stranger, tmp_path):
    text = (stranger / "tasks" / "late_delivery.toml").read_text()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "late_delivery.toml").write_text(text.replace("floor = 0.6", "flor = 0.6"))
    result = invoke("-C", tmp_path, "train")
    assert result.exit_code == 2
    assert "success.flor = 0.6: no such field; did you mean 'floor'?" in result.output
    assert len(result.output.splitlines()) < 15


def test_missing_data_says_what_to_run(stranger, tmp_path):
    for folder in ("tasks", "definitions"):
        (tmp_path / folder).symlink_to(stranger / folder)
    text = (stranger / "tasks" / "late_delivery.toml").read_text()
    (tmp_path / "tasks").unlink()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "late_delivery.toml").write_text(text)
    (tmp_path / "tasks" / "late_delivery.sql").write_text("select * from orders")
    result = invoke("-C", tmp_path, "train", "--as-of", "2024-01-25")
    assert result.exit_code == 2
    assert "spine table 'orders' has no data" in result.output
    assert "skewless ingest" in result.output


def test_a_repository_without_a_hook_cannot_be_ingested(stranger):
    result = invoke("-C", stranger, "ingest")
    assert result.exit_code == 2
    assert "has no ingest.py" in result.output


def test_an_instant_that_is_none_names_the_form(stranger):
    result = invoke("-C", stranger, "train", "--as-of", "yesterday")
    assert result.exit_code == 2
    assert "2013-04-01T12:00:00+00:00" in result.output


def test_an_empty_log_adds_up(stranger):
    result = invoke("-C", stranger, "log", "check", "--json")
    assert result.exit_code == 0
    assert '"answered": 0' in result.output


def test_nothing_served_is_nothing_to_monitor(tmp_path, stranger):
    for folder in ("tasks", "definitions"):
        (tmp_path / folder).symlink_to(stranger / folder)
    result = invoke("-C", tmp_path, "monitor")
    assert result.exit_code == 2
    assert "was never deployed" in result.output


def test_rolling_back_nothing_says_so(tmp_path, stranger):
    (tmp_path / "tasks").symlink_to(stranger / "tasks")
    result = invoke("-C", tmp_path, "rollout", "rollback", "--why", "rehearsal")
    assert result.exit_code == 2
    assert "never been deployed" in result.output


def test_no_option_anywhere_skips_a_step_of_the_rollout():
    options = {option for path in commands(main) for option in _options(path)}
    assert not {"--force", "--skip-shadow", "--skip-canary", "--no-gates", "--override"} & options


def _options(path):
    command = main
    for name in path:
        command = command.commands[name]
    return [option for parameter in command.params for option in parameter.opts]
