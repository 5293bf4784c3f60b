"""GET /openapi.json: the APIs of this gateway in OpenAPI 3.1.

Bodies come from the models that check them, the APIs of the OS from their protobuf descriptors. A
test compares the operations with the application's routes.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from llmos.servers.gateway.admin_calls import CALLS, Call
from llmos.servers.gateway.openapi_answers import ANSWERS, TEXT, ref
from llmos.servers.gateway.openapi_messages import Asked, Told, Written
from llmos.servers.gateway.openapi_paths import OPERATIONS, Form, Operation

Json = dict[str, Any]
_JSON, _EVENTS = "application/json", "text/event-stream"
_ADMIN = "/llmos/v1"
_PLAIN = str.maketrans("", "", "/{}_.-")
_HEAD: Json = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Length of the JSON, when raw tensors follow it.",
    "schema": {"type": "integer", "minimum": 0},
}


@cache
def document() -> Json:
    """Return the OpenAPI document."""
    schemas: Json = {**ANSWERS, **_bodies()}
    paths: Json = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method] = _operation(one)
    for call in CALLS:
        path = _ADMIN + call.path.replace(":path}", "}")
        paths.setdefault(path, {})[call.verb.lower()] = _call(call, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LLM OS gateway",
            "version": version("llmos"),
            "description": "OpenAI's API under /v1, the Open Inference Protocol under /v2, the "
            "APIs of the OS under /llmos/v1.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _bodies() -> Json:
    found = {b for one in OPERATIONS if isinstance(b := one.body, type)}
    models: list[type[BaseModel]] = sorted(found, key=lambda body: body.__name__)
    _, defined = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas: Json = defined["$defs"]
    return schemas


def _operation(one: Operation) -> Json:
    operation = _head(one.method, one.path, one.about)
    operation["responses"] = _responses(one.path, _content(one))
    if one.path.endswith("/ready"):
        not_now = "503" if one.path == "/v2/health/ready" else "400"
        operation["responses"][not_now] = {"description": "Not now. (Without a body.)"}
    operation["parameters"] += [{"name": q, "in": "query", "schema": TEXT} for q in one.query]
    if one.path.endswith("/infer"):
        operation["parameters"].append(_HEAD)
    content: Json = {}
    if isinstance(one.body, Form):
        form = {"type": "object", "properties": one.body.members, "required": one.body.required}
        content = {"multipart/form-data": {"schema": form}}
    elif isinstance(one.body, dict):
        content = {_JSON: {"schema": one.body}}
    elif one.body is not None:
        content = {_JSON: {"schema": ref(one.body.__name__)}}
        if one.example is not None:
            content[_JSON]["example"] = one.example
        if one.path.endswith("/infer"):
            content["application/octet-stream"] = {}
    if content:
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _content(one: Operation) -> Json:
    content: Json = {}
    if "/" in one.answer:
        content[one.answer] = {}
    elif one.answer:
        content[_JSON] = {"schema": ref(one.answer)}
    if one.answer == "Inference":
        content["application/octet-stream"] = {}
    if one.answer == "Transcription":
        content["text/plain"] = {}
    if one.streams:
        content[_EVENTS] = {}
    return content


def _call(call: Call, path: str, schemas: Json) -> Json:
    operation = _head(
        call.verb.lower(), path, f"{call.method.name} of {call.rpc.partition('/')[0]}"
    )
    in_path = frozenset(parameter["name"] for parameter in operation["parameters"])
    asked = call.request.DESCRIPTOR
    if call.verb == "GET":
        operation["parameters"] += Written(schemas).parameters(asked, in_path)
    else:
        schema = Asked(schemas).ref(asked, in_path)
        operation["requestBody"] = {"content": {_JSON: {"schema": schema}}}
    told = Told(schemas).ref(call.response.DESCRIPTOR)
    content = {_EVENTS: {}} if call.streams else {_JSON: {"schema": told}}
    operation["responses"] = _responses(path, content)
    return operation


def _head(method: str, path: str, about: str) -> Json:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    schema = {"type": "string", "minLength": 1}
    return {
        "operationId": f"{method}{path.title()}".translate(_PLAIN),
        "summary": about,
        "tags": [path.split("/")[1] or "ops"],
        "parameters": [
            {"name": n, "in": "path", "required": True, "schema": schema} for n in names
        ],
    }


def _responses(path: str, content: Json) -> Json:
    error = ref("InferenceError" if path.startswith("/v2") else "Error")
    errors = {_JSON: {"schema": error}}
    return {
        "200": {"description": "Done.", **({"content": content} if content else {})},
        "4XX": {
            "description": "The request cannot be answered; `retry-after-ms` says when it can.",
            "content": errors,
        },
        "5XX": {"description": "The OS cannot answer now.", "content": errors},
    }


def routes() -> list[Route]:
    """Return the route."""

    async def show(request: Request) -> JSONResponse:
        return JSONResponse(document())

    return [Route("/openapi.json", show, methods=["GET"])]
