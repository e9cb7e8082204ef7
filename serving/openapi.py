"""The interface described: OpenAPI from task files and feature definitions, and one page that shows it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import orjson

from serving import openapi_v2
from serving.log_segments import OWN_ID
from serving.requests import Field, RequestSchema

_TYPES: dict[str, dict[str, Any]] = {
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "text": {"type": "string"},
    "boolean": {"type": "boolean"},
    "timestamp": {"type": "string", "format": "date-time"},
}
_EXAMPLES: dict[str, Any] = {
    "integer": 1,
    "number": 1.5,
    "text": "A",
    "boolean": True,
    "timestamp": "2024-01-31T09:30:00Z",
    "scalar": "A",
}
_ERRORS = {
    "400": "Not JSON, or the same case twice.",
    "401": "A bearer token is needed, where the replica has any. Nothing was read.",
    "403": "The token is good for something else.",
    "413": "The body is larger than the task allows.",
    "415": "The body is not application/json.",
    "422": "A field is missing, unknown, of the wrong type, or a key is unknown to the online store.",
    "429": "This token asks too often. Ask again after Retry-After seconds.",
    "500": "The model or an on-demand view failed on this request. Nothing was logged.",
    "503": "Not now: overloaded, nothing deployed, features or log unavailable. Ask again after Retry-After seconds.",
    "504": "The deadline of the header X-Request-Deadline-Ms was over. Nothing was logged.",
}


def document(schemas: Sequence[RequestSchema]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all tasks."""
    paths: dict[str, Any] = {}
    components: dict[str, Any] = {"Error": _ERROR, **openapi_v2.COMPONENTS}
    for schema in schemas:
        name = schema.task.name
        paths[f"/v1/tasks/{name}/predict"] = {"post": _operation(schema)}
        components[f"{name}.Request"] = _request(schema)
        components[f"{name}.Answer"] = _answer(schema)
        components[f"{name}.InferRequest"] = openapi_v2.request(schema)
    for path, (summary, kind) in _PAGES.items():
        paths[path] = {"get": {"summary": summary, "responses": {"200": {"description": "OK", "content": {kind: {}}}}}}
    paths["/readyz"]["get"]["responses"]["503"] = {"description": "A task has no version loaded yet."}
    paths |= openapi_v2.paths(schemas, {each.task.name: example(each)["rows"][0] for each in schemas})
    return {
        "openapi": "3.1.0",
        "info": {"title": "Skewless predictions", "version": "1"},
        "paths": paths,
        "components": {"schemas": components},
    }


def example(schema: RequestSchema) -> dict[str, Any]:
    """A request that is right in form; its values are made up."""
    row: dict[str, Any] = {schema.task.spine.id: "case-1"} if schema.has_case_field else {}
    row |= {each.name: _EXAMPLES[each.type] for each in schema.fields}
    if schema.has_stamp_field:
        row[schema.task.spine.event_timestamp] = _EXAMPLES["timestamp"]
    return {"rows": [row]}


def page(schemas: Sequence[RequestSchema]) -> bytes:
    """One HTML page that shows how to ask; needs nothing from the network."""
    parts = [_HEAD]
    for schema in schemas:
        task = schema.task
        fields = "".join(
            f"<tr><td><code>{html.escape(each.name)}</code></td><td>{each.role}</td>"
            f"<td>{each.type}{' or null' if each.nullable else ''}</td></tr>"
            for each in schema.fields
        )
        body = orjson.dumps(example(schema), option=orjson.OPT_INDENT_2).decode()
        parts.append(
            f"<h2>{html.escape(task.name)}</h2><p>{html.escape(task.description)}</p>"
            f"<p><code>POST /v1/tasks/{task.name}/predict</code>, at most {task.serving.max_rows} rows and "
            f"{task.serving.max_body_bytes} bytes.</p><table><tr><th>field</th><th>role</th><th>type</th></tr>{fields}"
            f"</table><pre>{html.escape(body)}</pre>"
        )
    return "".join([*parts, "</body></html>"]).encode()


def _operation(schema: RequestSchema) -> dict[str, Any]:
    name = schema.task.name
    failures = {
        code: {
            "description": why,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}, **_told(code, schema)}},
        }
        for code, why in _ERRORS.items()
    }
    return {
        "operationId": f"predict_{name}",
        "summary": schema.task.description or f"Predict {name}.",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": f"#/components/schemas/{name}.Request"},
                    "example": example(schema),
                }
            },
        },
        "responses": {
            "200": {
                "description": "One prediction a row, in the rows' order, each of them logged.",
                "content": {
                    "application/json": {
                        "schema": {"$ref": f"#/components/schemas/{name}.Answer"},
                        "example": _example_answer(schema),
                    }
                },
            },
            **failures,
        },
    }


def _told(code: str, schema: RequestSchema) -> dict[str, Any]:
    """An example of the error that most callers meet first."""
    if code != "422":
        return {}
    where = f"rows[0].{schema.fields[0].name}"
    expected = "a string; it is missing"
    error = {
        "field": where,
        "value": None,
        "expected": expected,
        "message": f"{where} is missing; expected {expected}.",
    }
    return {"example": {"error": error}}


def _example_answer(schema: RequestSchema) -> dict[str, Any]:
    task = schema.task
    if task.kind == "regression":
        told: dict[str, Any] = {"value": 12.5, "quantiles": {f"{level:g}": 10.0 for level in task.quantiles}}
    else:
        told = {"score": 0.25, "decision": 0}
    prediction = {task.spine.id: "case-1", **told, "variant": "champion", "version": 1}
    return {"request_id": f"{OWN_ID}1", "task": task.name, "predictions": [prediction], "degraded": []}


def _request(schema: RequestSchema) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    if schema.has_case_field:
        properties[schema.task.spine.id] = {
            "type": ["string", "integer", "null"],
            "description": "Names the case; a label is joined by it, and a batch task's prediction found. Each "
            "case once a request.",
        }
    properties |= {each.name: _property(each) for each in schema.fields}
    required = [each.name for each in schema.fields]
    if schema.has_stamp_field:
        properties[schema.task.spine.event_timestamp] = _TYPES["timestamp"] | {"description": "When the row is asked."}
        required.append(schema.task.spine.event_timestamp)
    row = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {
        "type": "object",
        "required": ["rows"],
        "additionalProperties": False,
        "properties": {
            "request_id": {
                "type": ["string", "null"],
                "pattern": f"^(?!{OWN_ID})[!-~]{{1,128}}$",
                "description": "Repeating it returns the first answer and counts nothing twice.",
            },
            "rows": {"type": "array", "minItems": 1, "maxItems": schema.task.serving.max_rows, "items": row},
        },
    }


def _property(field: Field) -> dict[str, Any]:
    if field.type == "scalar":
        return {"type": ["string", "number", "boolean", *(["null"] if field.nullable else [])]}
    kind = dict(_TYPES[field.type])
    if field.type == "integer":
        kind |= {"minimum": -(1 << field.bits - 1), "maximum": (1 << field.bits - 1) - 1}
    if field.type == "text":
        kind["pattern"] = "^[^\\u0000]*$"
    if field.nullable:
        kind["type"] = [kind["type"], "null"]
    return kind


def _answer(schema: RequestSchema) -> dict[str, Any]:
    task = schema.task
    if task.kind == "regression":
        levels = [f"{level:g}" for level in task.quantiles]
        answer: dict[str, Any] = {
            "value": {"type": "number"},
            "quantiles": {
                "type": "object",
                "description": "By level, such as 0.9: the value that the outcome stays at or below so often.",
                "properties": {level: {"type": "number"} for level in levels},
                "additionalProperties": {"type": "number"},
            },
        }
    else:
        answer = {"score": {"type": "number"}, "decision": {"type": "integer", "enum": [0, 1]}}
    prediction = {
        "type": "object",
        "required": [task.spine.id, *answer, "variant", "version"],
        "properties": {
            task.spine.id: {"type": ["string", "null"]},
            **answer,
            "variant": {"type": "string", "enum": ["champion", "canary"]},
            "version": {"type": "integer", "description": "0 is the naive baseline."},
        },
    }
    return {
        "type": "object",
        "required": ["request_id", "task", "predictions", "degraded"],
        "properties": {
            "request_id": {"type": "string"},
            "task": {"type": "string", "const": schema.task.name},
            "predictions": {"type": "array", "items": prediction},
            "degraded": {
                "type": "array",
                "items": {"type": "string"},
                "description": "`repeated`: an earlier request of this id. `rows[i]: fallback: …`: why a row is "
                "answered with the fallback. `rows[i]: VIEW: last good` or `default`: what stands in for a view while "
                "the online store does not answer.",
            },
        },
    }


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["field", "value", "expected", "message"],
            "properties": {
                "field": {"type": "string"},
                "value": {},
                "expected": {"type": "string"},
                "message": {"type": "string"},
            },
        }
    },
}
_PAGES = {
    "/healthz": ("The process answers.", "application/json"),
    "/readyz": ("Every task has a version loaded; says which.", "application/json"),
    "/metrics": ("Prometheus metrics of this replica.", "text/plain"),
    "/openapi.json": ("This document.", "application/json"),
    "/docs": ("How to ask, as a page.", "text/html"),
}
_HEAD = (
    "<!doctype html><html lang=en><head><meta charset=utf-8><title>Skewless predictions</title><style>"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.2rem .6rem;text-align:left}"
    "pre{background:#f4f4f4;padding:1rem;overflow:auto}</style></head><body><h1>Skewless predictions</h1>"
    "<p>Machine-readable: <a href=openapi.json>openapi.json</a>. State: <a href=readyz>readyz</a>, "
    "<a href=metrics>metrics</a>.</p>"
)
