"""What a person sees: steps and times on standard error, results on standard output as tables or one JSON object."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_out = Console()
_err = Console(stderr=True)


class Steps:
    """Announces the steps of a long job and remembers how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce a step; on success add its seconds to `seconds[name]`."""
        _err.print(Text.assemble(("==>", "bold"), f" {name}"), soft_wrap=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        _err.print(f"    [dim]{self.seconds[name]} s[/]")

    def say(self, text: str) -> None:
        """One line of detail below the current step."""
        _err.print(f"    {text}", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def gauge(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar on a terminal; yields `reached(done, total)`. Elsewhere a line for each tenth."""
        told = 0
        columns = (TextColumn("    {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as progress:
            task = progress.add_task(label, total=None)

            def reached(done: int, total: int) -> None:
                nonlocal told
                progress.update(task, completed=done, total=total)
                tenth = 10 * done // max(total, 1)
                if not _err.is_terminal and tenth > told:
                    told = tenth
                    self.say(f"{label}: {done:,} of {total:,}")

            yield reached

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Any]:
        """A progress bar on a terminal; yields `advance(text)`. Elsewhere a line for each tenth."""
        columns = (TextColumn("    {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        done = 0
        with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as progress:
            task = progress.add_task(label, total=total)

            def advance(text: str = "") -> None:
                nonlocal done
                done += 1
                progress.update(task, advance=1, description=text or label)
                if not _err.is_terminal and total >= 10 and done % (total // 10) == 0:
                    self.say(f"{label}: {done} of {total} {text}".rstrip())

            yield advance


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    # A database's rows name their columns with a kind of text of SQLAlchemy's own, which orjson takes for no text.
    plain = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    _out.file.write(orjson.dumps(value, option=plain, default=str).decode())
    _out.file.write("\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on standard output, its title on a line above. What is in square brackets is text like any other."""
    table = Table()
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(show(cell)) for cell in row))
    _out.print(Text(title, "bold"))
    _out.print(table)


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Name and value pairs as a two-column table."""
    print_table(title, ("", ""), list(facts.items()))


def print_error(text: str) -> None:
    """An error for a person, on standard error."""
    _err.print("[bold red]error:[/]", end=" ")
    _err.print(text, markup=False, highlight=False, soft_wrap=True)


def show(value: Any) -> str:
    """A cell's text: numbers with separators and four significant decimals, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4f}".rstrip("0").rstrip(".")
    return str(value)
