"""The task file's JSON Schema, for editors: every field with its rule and what it means."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from contracts.duration import show_duration
from contracts.task import METRICS, Task


class _AsWritten(GenerateJsonSchema):
    """Defaults as a person writes them: durations as text, sections as tables."""

    def generate(self, schema: Any, mode: JsonSchemaMode = "validation") -> dict[str, Any]:
        return {"$schema": self.schema_dialect, **super().generate(schema, mode)}

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, timedelta):
            return show_duration(dft)
        if isinstance(dft, BaseModel):
            return {name: self.encode_default(value) for name, value in dft}
        return super().encode_default(dft)


def task_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a task file.

    It says what one field may be; rules between fields, and with the repository, are for `skewless task check`.
    """
    schema = Task.model_json_schema(schema_generator=_AsWritten)
    metrics = [name for names in METRICS.values() for name in names]
    models: list[type[BaseModel]] = [Task, *_sections(Task)]
    for model in models:
        properties = (schema if model is Task else schema["$defs"][model.__name__])["properties"]
        for name, field in model.model_fields.items():
            properties[name].setdefault("description", field.description)  # lost where a section must be given
    schema["$defs"]["Success"]["properties"]["metric"]["enum"] = metrics
    return schema


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for field in model.model_fields.values():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield inner
            yield from _sections(inner)
