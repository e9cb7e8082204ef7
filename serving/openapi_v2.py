"""The Open Inference Protocol's part of the OpenAPI document: its JSON form, with each task's inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving import v2
from serving.requests import RequestSchema
from serving.v2_tensors import NUMPY

_DATATYPES = [*NUMPY, "BYTES"]
_PARAMETERS = {"type": "object", "description": "`binary_data_size` and the like, see docs/serving.md."}
_VALUE = {"type": ["string", "number", "boolean", "null"]}
COMPONENTS: dict[str, Any] = {
    "V2.Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "V2.Server": {
        "type": "object",
        "required": ["name", "version", "extensions"],
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "extensions": {"type": "array", "items": {"type": "string"}},
        },
    },
    "V2.Port": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string"},
            "datatype": {"type": "string", "enum": _DATATYPES},
            "shape": {"type": "array", "items": {"type": "integer"}},
        },
    },
    "V2.Model": {
        "type": "object",
        "required": ["name", "versions", "platform", "inputs", "outputs"],
        "properties": {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"},
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/V2.Port"}},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/V2.Port"}},
        },
    },
    "V2.Answer": {
        "type": "object",
        "required": ["model_name", "model_version", "id", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object", "properties": {"degraded": {"type": "string"}}},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "datatype", "shape", "data"],
                    "properties": {
                        "name": {"type": "string"},
                        "datatype": {"type": "string", "enum": _DATATYPES},
                        "shape": {"type": "array", "items": {"type": "integer"}},
                        "data": {"type": "array", "items": _VALUE},
                    },
                },
            },
        },
    },
}
_STATES = {
    "/v2": ("The server's name, version and extensions.", "V2.Server"),
    "/v2/health/live": ("The process answers.", None),
    "/v2/health/ready": ("Every task has a version loaded.", None),
}
_NOT_READY = "Nothing is deployed."
_INFER_FAILURES = {
    "400": "The tensors do not fit together, or are not JSON.",
    "404": "The version named is not the one served.",
    "413": "The body is larger than the task allows, as sent or unpacked.",
    "415": "A content encoding other than gzip and deflate.",
    "422": "A value is missing, unknown or of the wrong type.",
    "500": "The model or an on-demand view failed on this request. Nothing was logged.",
    "503": "Not now: overloaded, nothing deployed, features or log unavailable. Ask again after Retry-After seconds.",
}


def paths(schemas: Sequence[RequestSchema], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every path below /v2, by task. `rows` holds an example row of each task."""
    found: dict[str, Any] = {}
    for path, (summary, name) in _STATES.items():
        found[path] = {"get": {"summary": summary, "responses": {"200": _content("OK", name)}}}
    found["/v2/health/ready"]["get"]["responses"]["503"] = {"description": "A task has no version loaded yet."}
    for schema in schemas:
        task = schema.task.name
        base = f"/v2/models/{task}"
        found[base] = {
            "get": {
                "summary": f"Inputs, outputs and version of {task}.",
                "responses": {"200": _content("OK", "V2.Model")},
            }
        }
        unready = _content(_NOT_READY, "V2.Error")
        found[f"{base}/ready"] = {
            "get": {"summary": f"Whether {task} is served.", "responses": {"200": _content("OK", None), "503": unready}}
        }
        found[f"{base}/infer"] = {"post": _infer(schema, rows[task])}
    return found


def request(schema: RequestSchema) -> dict[str, Any]:
    """The JSON of an inference request of one task."""
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {
                "type": "string",
                "description": f"One of {', '.join(port.name for port in v2.inputs(schema))}; or one of them with "
                "`.null` behind it, BOOL, which marks the places without a value.",
            },
            "datatype": {"type": "string", "enum": _DATATYPES},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 8},
            "data": {"type": "array", "items": _VALUE},
            "parameters": _PARAMETERS,
        },
    }
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "enum": [port.name for port in v2.outputs(schema)]},
            "parameters": _PARAMETERS,
        },
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "description": "As `request_id` of the native request."},
            "parameters": _PARAMETERS,
            "inputs": {"type": "array", "minItems": 1, "items": tensor},
            "outputs": {"type": "array", "items": output, "description": "All when left out."},
        },
    }


def _infer(schema: RequestSchema, row: Mapping[str, Any]) -> dict[str, Any]:
    task = schema.task.name
    content = {"schema": {"$ref": f"#/components/schemas/{task}.InferRequest"}, "example": _example(schema, row)}
    answer = {
        "model_name": task,
        "model_version": "1",
        "id": "auto-1",
        "outputs": [
            {"name": port.name, "datatype": port.datatype, "shape": [1], "data": [_example_of(port)]}
            for port in v2.outputs(schema)
        ],
    }
    succeeded = _content("One value a row in each output, in the rows' order, each row logged.", "V2.Answer")
    succeeded["content"]["application/json"]["example"] = answer
    failures = {code: _content(why, "V2.Error") for code, why in _INFER_FAILURES.items()}
    return {
        "operationId": f"infer_{task}",
        "summary": f"{schema.task.description or f'Predict {task}.'} (Open Inference Protocol)",
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {"200": succeeded, **failures},
    }


def _example(schema: RequestSchema, row: Mapping[str, Any]) -> dict[str, Any]:
    tensors = [
        {"name": port.name, "datatype": port.datatype, "shape": [1], "data": [row[port.name]]}
        for port in v2.inputs(schema)
    ]
    return {"inputs": tensors}


def _example_of(port: v2.Port) -> Any:
    return {"FP64": 0.5, "INT64": 1}.get(port.datatype, "champion")


def _content(description: str, name: str | None) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"} if name else {}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
