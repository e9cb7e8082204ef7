"""`skewless console` as a person starts it, on a project of which nothing was made yet."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

import httpx

from tests.loop.conftest import SKEWLESS


def test_it_serves_the_page_on_loopback_and_says_what_to_do_first(stranger: Path, tmp_path: Path) -> None:
    for folder in ("tasks", "definitions"):
        (tmp_path / folder).symlink_to(stranger / folder)
    command = [SKEWLESS, "-C", str(tmp_path), "console", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[2]
            assert url.startswith("http://127.0.0.1:")
            page = httpx.get(url, timeout=60).text
            assert "late_delivery" in page
            assert "skewless retrain late_delivery" in page
            assert "No version was trained yet" in page
            assert httpx.get(f"{url}/tasks/late_delivery/versions/1/card", timeout=60).status_code == 404
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_port_that_is_taken_is_one_screen_and_exit_status_2(stranger: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks").symlink_to(stranger / "tasks")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [SKEWLESS, "-C", str(tmp_path), "console", "--port", port], capture_output=True, text=True
        )
    assert done.returncode == 2
    assert f"Port {port} on 127.0.0.1 is in use." in done.stderr
    assert "--port 0" in done.stderr


def test_a_folder_without_tasks_is_no_project(tmp_path: Path) -> None:
    done = subprocess.run([SKEWLESS, "-C", str(tmp_path), "console"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "No task file in" in done.stderr
