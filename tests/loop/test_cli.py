import errno
import os
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from loop.cli import main
from loop.command import told


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


@pytest.mark.parametrize("command", ["run", "serve", "monitor", "train"])
def test_a_data_folder_that_cannot_be_one_is_one_screen_and_exit_status_2(stranger, tmp_path, command):
    for folder in ("tasks", "definitions"):
        (tmp_path / folder).symlink_to(stranger / folder)
    (tmp_path / "data").write_text("a file in its place")
    result = invoke("-C", tmp_path, command)
    assert result.exit_code == 2
    assert f"{tmp_path / 'data'}" in result.output
    assert "a folder this user can write to" in result.output
    assert len(result.output.splitlines()) < 8


def test_a_state_that_cannot_be_opened_is_one_screen_and_exit_status_2(stranger, tmp_path):
    (tmp_path / "tasks").symlink_to(stranger / "tasks")
    (tmp_path / "data" / "state.db").mkdir(parents=True)
    result = invoke("-C", tmp_path, "rollout", "status")
    assert result.exit_code == 2
    assert "A database of this project cannot be used: unable to open database file." in result.output


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_what_the_disk_refuses_is_told_and_what_only_a_programmer_can_mend_is_not(code):
    def fail(error: Exception):
        @click.command()
        @told
        def command() -> None:
            raise error

        return CliRunner().invoke(command)

    assert fail(KeyboardInterrupt()).exit_code == 130  # 1 would say that the answer is no
    refused = fail(OSError(code, os.strerror(code), "/srv/churn/data/state.db"))
    assert refused.exit_code == 2
    assert f"/srv/churn/data/state.db: {os.strerror(code)}." in refused.output
    assert isinstance(fail(KeyError("x")).exception, KeyError)


def test_a_port_that_is_none_is_refused(stranger):
    result = invoke("-C", stranger, "serve", "--port", 99999)
    assert result.exit_code == 2
    assert "1<=x<=65535" in result.output


def test_an_error_is_not_broken_into_lines_where_there_is_no_terminal(tmp_path):
    deep = tmp_path / "a_folder_with_a_rather_long_name" / "and_another_one_that_is_hardly_shorter"
    deep.mkdir(parents=True)
    assert f"No task file in {deep / 'tasks'}." in invoke("-C", deep, "run").output


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


@pytest.mark.parametrize("command", ["list", "reviews"])
def test_alerts_of_a_task_that_is_not_there_are_not_none(tmp_path, stranger, command):
    (tmp_path / "tasks").symlink_to(stranger / "tasks")
    assert invoke("-C", tmp_path, "alerts", command).exit_code == 0
    result = invoke("-C", tmp_path, "alerts", command, "late_delivry")
    assert result.exit_code == 2
    assert "'late_delivry' not found" in result.output


@pytest.mark.parametrize(
    "command",
    [("rollout", "approve", "--why"), ("alerts", "acknowledge", "1", "--note"), ("alerts", "resolve", "1", "--note")],
)
def test_what_goes_on_record_says_something(stranger, command):
    result = invoke("-C", stranger, *command, " ")
    assert result.exit_code == 2
    assert "must say something" in result.output


def test_no_option_anywhere_skips_a_step_of_the_rollout():
    options = {option for path in commands(main) for option in _options(path)}
    assert not {"--force", "--skip-shadow", "--skip-canary", "--no-gates", "--override"} & options


def _options(path):
    command = main
    for name in path:
        command = command.commands[name]
    return [option for parameter in command.params for option in parameter.opts]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_goes_on_ends_when_it_is_told_to_whatever_is_imported_meanwhile(by):
    """polars takes SIGINT for itself when it is imported, as the first job of a schedule does."""
    code = "from loop.command import interruption; told = interruption(); import polars; print(flush=True); told.wait()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            time.sleep(0.5)  # so that it waits: before, the interpreter would see the signal by itself
            process.send_signal(by)
            assert process.wait(60) == 0
        finally:
            process.kill()
