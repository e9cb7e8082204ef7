"""What docs/task-files.md says of fields and rules is what the code says; running this file as a script renews it."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel

from contracts.duration import show_duration
from contracts.task import Task
from training.findings import RULES

PAGE = Path(__file__).parents[2] / "docs" / "task-files.md"


def field_rows(model: type[BaseModel], at: str) -> list[str]:
    rows, sections = [], []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            sections += ["", f"### `[{at}{name}]`", "", field.description or "", *field_rows(inner, f"{at}{name}.")]
            continue
        default = "" if field.is_required() else written(field.get_default(call_default_factory=True))
        shown = f"**`{name}`**" if field.is_required() else f"`{name}`"
        rows.append(f"| {shown} | {default} | {' '.join((field.description or '').split()).replace('|', '/')} |")
    head = ["", "| field | default | |", "|---|---|---|"] if rows else []
    return [*head, *rows, *sections]


def written(value: object) -> str:
    if value in ("", (), {}):
        return ""
    if hasattr(value, "total_seconds"):
        return f'`"{show_duration(value)}"`'
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def renewed(text: str) -> str:
    rules = ["| rule | |", "|---|---|", *(f"| `{rule}` | {meaning} |" for rule, meaning in RULES.items())]
    for name, lines in (("rules", rules), ("fields", field_rows(Task, "")[1:])):
        block = f"<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- /{name} -->"
        text = re.sub(rf"<!-- {name} -->.*<!-- /{name} -->", lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def test_every_field_and_rule_is_documented_as_it_is():
    assert PAGE.read_text() == renewed(PAGE.read_text())


def test_no_field_is_left_out():
    def names(model, at=""):
        for name, field in model.model_fields.items():
            inner = field.annotation
            yield from names(inner, f"{at}{name}.") if issubclass_of_model(inner) else [name]

    def issubclass_of_model(inner):
        return isinstance(inner, type) and issubclass(inner, BaseModel)

    text = PAGE.read_text()
    assert [name for name in names(Task) if f"`{name}`" not in text] == []


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
