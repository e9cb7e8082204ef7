"""DuckDB for a query or two. The process opens one instance: to open one takes longer than a small query."""

from __future__ import annotations

import functools

import duckdb


@functools.cache
def _instance() -> duckdb.DuckDBPyConnection:
    return duckdb.connect()


def scratch() -> duckdb.DuckDBPyConnection:
    """A connection with settings, temporary tables and registered data of its own, which end when it is closed."""
    return _instance().cursor()
