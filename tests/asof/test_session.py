"""The DuckDB session that reads sources."""

from __future__ import annotations

import duckdb
import pytest

from asof import session as sessions
from asof.session import EngineFailure, Session


@pytest.mark.parametrize("settings", [{"memory_limit": "plenty"}, {"threads": -3}])
def test_settings_that_duckdb_refuses_are_named_with_what_to_correct(settings: dict) -> None:
    (given,) = settings
    with Session(**settings) as session, pytest.raises(EngineFailure, match=given) as refused:
        session.arrow("select 1")
    assert f"{given}: {settings[given]}" in str(refused.value)
    assert "feature_store.yaml" in str(refused.value)


def test_a_session_that_is_asked_nothing_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(settings: object) -> duckdb.DuckDBPyConnection:
        raise AssertionError("opened")

    monkeypatch.setattr(sessions, "_instance", opened)
    with Session() as session:
        session.release(session.hold("rows", None))
