"""The console as a person starts it, and as serving mounts it, on a project of which nothing was made yet."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.clock import SystemClock
from contracts.state import open_state
from monitoring.alerts import open_alert
from serving.access import Access, AccessSettings
from serving.access_gate import CONSOLE, Gate
from serving.mount import Mount, NothingToMount, load
from tests.browser import Browser
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


ADMIN = "an-administration-token"


def guarded(project: Path) -> Browser:
    """The console as serving mounts it, with nothing beside it."""

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"predictions"})

    (project / "data").mkdir(exist_ok=True)
    environment = {"SKEWLESS_ADMIN_TOKEN": ADMIN, "SKEWLESS_PREDICTION_TOKEN": "a-prediction-token"}
    access = Access(AccessSettings.of(environment))
    return Browser(Gate(Mount(nothing, CONSOLE, load("loop.console:mounted", project, project / "data")), access))


def test_below_serving_it_asks_a_browser_for_the_administration_token(stranger: Path, tmp_path: Path) -> None:
    for folder in ("tasks", "definitions"):
        (tmp_path / folder).symlink_to(stranger / folder)
    browser = guarded(tmp_path)
    for path in ("/console", "/console/"):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Basic realm="skewless"')
        assert browser.get(path, auth=("me", "a-prediction-token")).status_code in (401, 403)
        assert browser.get(path, headers={"authorization": "Basic !"}).status_code == 401
        assert "late_delivery" in browser.get(path, auth=("me", ADMIN)).text
        assert "late_delivery" in browser.get(path, headers={"authorization": f"Bearer {ADMIN}"}).text
    assert browser.get("/v1", auth=("me", ADMIN)).status_code in (401, 403)  # a password is for the console alone


def test_below_serving_every_replica_takes_the_forms_of_every_other(stranger: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks").symlink_to(stranger / "tasks")
    (tmp_path / "definitions").symlink_to(stranger / "definitions")
    one, other = guarded(tmp_path), guarded(tmp_path)
    with open_state(f"sqlite:///{tmp_path / 'data' / 'state.db'}").begin() as connection:
        open_alert(
            connection, task="late_delivery", kind="drift", message="moved", evidence={}, now=SystemClock().now()
        )
    page = one.get("/console/", auth=("me", ADMIN)).text
    [token] = set(re.findall(r'name="token" value="([^"]+)"', page))
    sent = {"token": token, "note": "seen"}
    answer = other.post("/console/alerts/1/acknowledge", data=sent, auth=("me", ADMIN))
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/?acknowledged=1")
    assert (tmp_path / "data" / "console.secret").stat().st_mode & 0o077 == 0


def test_a_name_that_leads_nowhere_is_said(tmp_path: Path) -> None:
    for name in ("loop.nothing:mounted", "loop.console:nothing"):
        with pytest.raises(NothingToMount, match="leads to no application"):
            load(name, tmp_path, tmp_path)
