"""GET /openapi.json: the APIs of this gateway in OpenAPI 3.1, from the models that check bodies."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from llmos.servers.gateway.oip_infer import InferBody
from llmos.servers.gateway.schema import ChatBody, CompletionBody, EmbeddingBody

Json = dict[str, Any]
_REFS = "#/components/schemas/{model}"
_MODEL = {"in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
# method, path, what it does, body
_PATHS: tuple[tuple[str, str, str, type[BaseModel] | None], ...] = (
    ("get", "/v1/models", "List the models", None),
    ("get", "/v1/models/{id}", "Show a model", None),
    ("post", "/v1/chat/completions", "Answer a chat; with `stream` as events", ChatBody),
    ("post", "/v1/completions", "Continue prompts; with `stream` as events", CompletionBody),
    ("post", "/v1/embeddings", "Turn texts into vectors", EmbeddingBody),
    ("get", "/v2", "Say what this is (Open Inference Protocol)", None),
    ("get", "/v2/health/live", "Say that the process is alive", None),
    ("get", "/v2/health/ready", "Say whether models can be asked", None),
    ("get", "/v2/models/{name}", "List a model's tensors", None),
    ("get", "/v2/models/{name}/ready", "Say whether a model is loaded", None),
    ("get", "/v2/models/{name}/config", "Tell how a model is run", None),
    ("get", "/v2/models/{name}/stats", "Tell what a model has done", None),
    ("post", "/v2/models/{name}/infer", "Run a model on tensors", InferBody),
    ("get", "/healthz", "Say that the process is alive", None),
    ("get", "/readyz", "Say whether requests can be answered", None),
    ("get", "/metrics", "All metrics, in Prometheus' text format", None),
)


@cache
def document() -> Json:
    """Return the OpenAPI document."""
    bodies = sorted({body for *_, body in _PATHS if body is not None}, key=lambda b: b.__name__)
    _, defined = models_json_schema([(b, "validation") for b in bodies], ref_template=_REFS)
    schemas: Json = defined["$defs"]
    schemas["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": ["object", "string"]}},
    }
    paths: Json = {}
    for method, path, about, body in _PATHS:
        operation: Json = {
            "operationId": f"{method}{path.title()}".translate(_PLAIN),
            "summary": about,
            "responses": {
                "200": {"description": "Done."},
                "4XX": _error("The request cannot be answered; `retry-after` says when it can."),
                "5XX": _error("The OS cannot answer now."),
            },
        }
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        if names:
            operation["parameters"] = [{"name": name, **_MODEL} for name in names]
        if body is not None:
            schema = {"$ref": _REFS.format(model=body.__name__)}
            content = {"application/json": {"schema": schema}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LLM OS gateway",
            "version": version("llmos"),
            "description": "OpenAI's API under /v1, the Open Inference Protocol under /v2.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


_PLAIN = str.maketrans("", "", "/{}_")


def _error(about: str) -> Json:
    schema = {"$ref": _REFS.format(model="Error")}
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def routes() -> list[Route]:
    """Return the route."""

    async def show(request: Request) -> JSONResponse:
        return JSONResponse(document())

    return [Route("/openapi.json", show, methods=["GET"])]
