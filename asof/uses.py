"""A transformation's text made to stand alone: with what it uses of its module, as that was when the view was applied.

Feast's registry keeps the text of a function, without its module, and makes the function of that text again. What it
uses of the module (packages, constants, other functions, and what those use) is written before it here: so it runs
wherever the registry is read, and whoever compares or hashes the text sees a constant that has changed.

    HEAD
    import polars as pl
    TAX = 1.2
    def taxed(rows): ...

Constants are written by value. One that cannot be (a model, a connection) is named by `unkept`.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import copyreg
import inspect
import math
import operator
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pandas as pd

HEAD = "# What the function at the end uses of its module, as that was when the view was applied.\n"

_GIVEN = {"pd": pd, "pandas": pd, "np": np, "numpy": np}
"""What Feast has at hand when it makes a function of its text."""
_ITSELF = object()
"""What a function's own name stands for, whatever a decorator has made of it."""


def standing_alone(function: Any, text: str) -> str:
    """The text of a function, after all it uses; the text alone where it uses nothing, or something unkept.

    Args:
        function: as defined, or as read from a registry.
        text: its source, decorators included, or what this returned before.
    """
    return _gathered(function, text).text


def unkept(function: Any, text: str) -> dict[str, str]:
    """What a function uses of its module that its text cannot hold: why, by name."""
    return _gathered(function, text).unkept


class _Gathering:
    """The uses of one function."""

    def __init__(self, function: FunctionType, text: str) -> None:
        self.text = text
        self.unkept: dict[str, str] = {}
        self._imports: set[str] = set()
        self._definitions: list[str] = []
        self._met: dict[str, Any] = {function.__name__: _ITSELF}
        self._roots = (Path.cwd(), Path(function.__code__.co_filename).resolve().parent)
        own = _definition(text, function.__name__)
        if own is None:
            self._use(_names_in_code(function), _scope(function))
            for name in self._met.keys() - self.unkept.keys() - {function.__name__}:
                if not inspect.ismodule(self._met[name]) and not _is_importable(self._met[name], self._roots):
                    self.unkept[name] = "which only a function that is written with def can use"
            return
        future = bool(function.__code__.co_flags & __future__.annotations.compiler_flag)
        first = "from __future__ import annotations\n" if future else ""
        self._use(_names(first + own), _scope(function), own)
        if not self.unkept and (self._imports or self._definitions):
            parts = [*sorted(self._imports), *self._definitions, own]
            self.text = HEAD + first + "\n".join(part.rstrip("\n") for part in parts) + "\n"

    def _use(self, names: list[str], scope: dict[str, Any], text: str = "") -> None:
        for name in names:
            if inspect.ismodule(scope.get(name)):
                self._imports |= {f"import {inner}" for inner in _submodules(text, name, scope[name])}
            if name not in scope:
                if not hasattr(builtins, name) and name not in self._met:
                    self.unkept[name] = "which its module does not have"
            elif name not in self._met:
                self._met[name] = scope[name]
                if name not in _GIVEN or _GIVEN[name] is not scope[name]:
                    self._write(name, scope[name])
            elif self._met[name] is not scope[name] and self._met[name] is not _ITSELF:
                self.unkept[name] = "which stands for two things"

    def _write(self, name: str, value: Any) -> None:
        if inspect.ismodule(value):
            if _is_installed(value, self._roots):
                self._imports.add(f"import {value.__name__} as {name}")
            else:
                self.unkept[name] = "a module of the repository: import from it what is used"
        elif _is_importable(value, self._roots):
            outer, _, rest = value.__qualname__.partition(".")
            self._imports.add(f"from {value.__module__} import {outer} as {name if not rest else outer}")
            if rest:
                self._definitions.append(f"{name} = {value.__qualname__}")
        elif isinstance(value, type) or inspect.isfunction(inspect.unwrap(value) if callable(value) else None):
            self._define(name, value)
        else:
            expression = _expression(value)
            if expression is None:
                self.unkept[name] = f"a {type(value).__name__}, which cannot be written as text"
            else:
                self._definitions.append(f"{name} = {expression}")

    def _define(self, name: str, value: Any) -> None:
        try:
            found = _definition(inspect.getsource(value), value.__name__, name, decorated=True)
        except (OSError, TypeError):
            found = None
        if found is None:
            self.unkept[name] = "whose text cannot be found"
            return
        if value.__name__ not in (name, "<lambda>"):
            found += f"\n{name} = {value.__name__}"
        # What it uses comes first: a decorator or a default is needed when it is defined.
        self._use(_names(found), _scope(value), found)
        self._definitions.append(found)


def _gathered(function: Any, text: str) -> _Gathering | _Whole:
    if text.startswith(HEAD) or not isinstance(function, FunctionType) or _is_made_of(text, function):
        return _Whole(text)
    return _Gathering(function, text)


def _is_made_of(text: str, function: FunctionType) -> bool:
    """Whether Feast has made the function of its text: there is nothing of a module to add."""
    return bool(text) and function.__globals__.get("__name__") == "feast_udf_rehydrate"


class _Whole:
    """A text that stands alone already, or that is none of Python's."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.unkept: dict[str, str] = {}


def _definition(text: str, name: str, assigned: str = "", *, decorated: bool = False) -> str | None:
    """The text of one function or class, or of the assignment of a lambda; None if it is something else."""
    text = textwrap.dedent(text)
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return None
    if len(body) != 1:
        return None
    (only,) = body
    if isinstance(only, ast.FunctionDef | ast.ClassDef) and only.name == name:
        return text if decorated else "\n".join(text.splitlines()[only.lineno - 1 :])
    is_lambda = isinstance(only, ast.Assign) and isinstance(only.value, ast.Lambda)
    return text if is_lambda and [ast.unparse(target) for target in only.targets] == [assigned] else None  # type: ignore[attr-defined]


def _names(text: str) -> list[str]:
    """What a text looks up outside itself, in order."""
    top = symtable.symtable(text, "transformation", "exec")

    def within(table: symtable.SymbolTable) -> Iterator[str]:
        for symbol in table.get_symbols():
            if symbol.is_referenced() and symbol.is_global() and not (table is top and symbol.is_assigned()):
                yield symbol.get_name()
        for child in table.get_children():
            yield from within(child)

    own = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned()}
    return sorted(set(within(top)) - own)


def _names_in_code(function: FunctionType) -> list[str]:
    """As `_names`, of a function without its text; an attribute that has the name of something comes along."""
    scope, pending, found = _scope(function), [function.__code__], set()
    while pending:
        code = pending.pop()
        found |= {name for name in (*code.co_names, *code.co_freevars) if name in scope}
        pending += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return sorted(found)


def _scope(value: Any) -> dict[str, Any]:
    """What a function or class can look up."""
    if isinstance(value, type):
        return dict(vars(sys.modules.get(value.__module__, builtins)))
    function: Any = inspect.unwrap(value)
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return {**function.__globals__, **cells}


def _submodules(text: str, name: str, module: ModuleType) -> Iterator[str]:
    """The modules within one that a text goes through: importing a package alone does not bring them."""
    for node in ast.walk(ast.parse(text)):
        path = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else []
        inner: Any = module
        for step in path[1:] if path[:1] == [name] else []:
            inner = getattr(inner, step, None)
            if not inspect.ismodule(inner) or not inner.__name__.startswith(f"{module.__name__}."):
                break
            yield inner.__name__


def _is_importable(value: Any, roots: tuple[Path, ...] = ()) -> bool:
    """Whether a class or function is had by importing it from an installed package."""
    name = getattr(value, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None or name == "__main__" or not hasattr(value, "__qualname__") or not _is_installed(module, roots):
        return False
    try:
        return bool(operator.attrgetter(value.__qualname__)(module) is value)
    except AttributeError:
        return False


def _is_installed(module: ModuleType, roots: tuple[Path, ...]) -> bool:
    """Whether a module is none of the repository's own, which lie below its roots."""
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if file is None:
        return True
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return not any(path.is_relative_to(root) for root in roots)


def _expression(value: Any) -> str | None:
    """Python that makes an equal value, the same in every process; None if there is none."""
    kind = type(value)
    if value is None or kind in (bool, int, str, bytes):
        return repr(value)
    if kind is float:
        return repr(value) if math.isfinite(value) else f"float({str(value)!r})"
    if kind is dict:
        pairs = [(_expression(key), _expression(each)) for key, each in value.items()]
        return None if any(None in pair for pair in pairs) else f"{{{', '.join(f'{k}: {v}' for k, v in pairs)}}}"
    if kind in (tuple, list, set, frozenset):
        parts = [_expression(each) for each in value]
        if None in parts:
            return None
        inside = ", ".join(map(str, parts if kind in (tuple, list) else sorted(map(str, parts))))
        if kind is tuple:
            return f"({inside},)" if parts else "()"
        return f"[{inside}]" if kind is list else f"{kind.__name__}([{inside}])"
    return _call(value)


def _call(value: Any) -> str | None:
    """As `_expression`, of what pickles as a plain call: dates, decimals, patterns."""
    reduce: Callable[[Any], Any] | None = copyreg.dispatch_table.get(type(value))
    try:
        made = reduce(value) if reduce else value.__reduce_ex__(2)
    except Exception:  # objects may refuse in any way
        return None
    if not isinstance(made, tuple) or any(part is not None for part in made[2:]):
        return None
    maker, arguments = made[:2]
    if getattr(maker, "__module__", "copyreg") == "copyreg" or not _is_importable(maker):
        return None
    inside = [_expression(argument) for argument in arguments]
    if None in inside:
        return None
    return f"__import__({maker.__module__!r}, fromlist=['']).{maker.__qualname__}({', '.join(map(str, inside))})"
