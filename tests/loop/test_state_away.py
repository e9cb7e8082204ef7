"""State on a server that is away: whichever command opens it, one error without the password."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from loop.cli import main

TASK = "late_delivery"


@pytest.mark.parametrize(
    "command",
    [("rollout", "status", TASK), ("alerts", "list"), ("retention", TASK), ("serve",), ("train", TASK), ("console",)],
)
def test_a_server_that_is_away_is_one_error(
    stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    for name in ("tasks", "definitions"):
        (tmp_path / name).symlink_to(stranger / name)
    (tmp_path / "skewless.toml").write_text('[state]\nurl = "postgresql://us@127.0.0.1:1/state"\n')
    refused = CliRunner().invoke(main, ["-C", str(tmp_path), *command])
    assert refused.exit_code == 2, refused.exception
    assert "The state in postgresql://us@127.0.0.1:1/state cannot be used: connection failed" in refused.output
    assert "Hint: see that the server runs" in refused.output
    assert "s3cret" not in refused.output
