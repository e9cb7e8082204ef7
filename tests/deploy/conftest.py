"""What may be set for the containers: variables that something in them reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest
from psycopg.pq import Conninfo

ROOT = Path(__file__).parents[2]
_PACKAGES = ("contracts", "asof", "feature_repo", "training", "serving", "monitoring", "loop")
_RAY = ("serve/_private/constants.py", "_common/usage/usage_constants.py")
_PYTHON = {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}


@pytest.fixture(scope="session")
def unread() -> Callable[[Iterable[str]], list[str]]:
    """Names of variables of which nothing that runs in the image knows."""
    ours = "".join(file.read_text() for name in _PACKAGES for file in (ROOT / name).rglob("*.py"))
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    rays = "".join((Path(spec.origin).parent / name).read_text() for name in _RAY)
    stores = "".join(file.read_text() for file in (ROOT / "deploy" / "stores").glob("*.yaml"))
    known = set(re.findall(r'"([A-Z][A-Z_]+[A-Z])"', ours + rays)) | set(re.findall(r"\$\{(\w+)\}", stores)) | _PYTHON
    known |= {option.envvar.decode() for option in Conninfo.get_defaults() if option.envvar}
    known |= {f"{name}_FILE" for name in known if re.fullmatch(r"SKEWLESS_\w+_TOKEN", name)}  # as serving.access does
    return lambda names: sorted(set(names) - known)
