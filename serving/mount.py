"""An application below a path of another, and how it is named: serving shows the console without knowing what it is."""

from __future__ import annotations

import importlib
from pathlib import Path

from contracts.errors import SkewlessError
from serving.access_gate import Asgi, Receive, Scope, Send


class NothingToMount(SkewlessError, ImportError):
    """A name that leads to no application."""


class Mount:
    """Hands what is below a path to one application, and the rest to another.

    Args:
        inner: answers the rest.
        path: such as `/console`.
        other: answers what is below it; told so by `root_path`.
    """

    def __init__(self, inner: Asgi, path: str, other: Asgi) -> None:
        self._inner, self._path, self._other = inner, path, other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's event stream."""
        path = scope.get("path", "")
        if scope["type"] == "http" and (path == self._path or path.startswith(f"{self._path}/")):
            below = path if path != self._path else f"{path}/"
            await self._other({**scope, "path": below, "root_path": self._path}, receive, send)
        else:
            await self._inner(scope, receive, send)


def load(name: str, project: Path, data: Path) -> Asgi:
    """The application that `module:function` makes of a project folder and its data root.

    Raises:
        NothingToMount: there is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        made: Asgi = getattr(importlib.import_module(module), function)(project, data)
    except (ImportError, AttributeError) as error:
        raise NothingToMount(f"{name!r} leads to no application: {error}.", hint="write module:function.") from error
    return made
