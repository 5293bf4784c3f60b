"""The gateway as one ASGI application over a backend."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from llmos.lib.errors import Internal, LLMOSError
from llmos.servers.gateway import errors
from llmos.servers.gateway.admin import Admin, Channels
from llmos.servers.gateway.api import OpenAI
from llmos.servers.gateway.backend import Backend
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.webconsole import Console
from llmos.servers.gateway.metrics import Metrics
from llmos.servers.gateway.observe import Observed
from llmos.servers.gateway.ops import Ops

_HTTP_CODES = {
    404: "unknown_route",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
}


def build(backend: Backend, config: GatewayConfig, channels: Channels | None = None) -> ASGIApp:
    """Return the application; without `channels` it has no /llmos/v1 and no console."""
    metrics = Metrics()
    routes: list[BaseRoute] = [
        *OpenAI(backend, config, metrics).routes(),
        *Ops(backend, metrics).routes(),
    ]
    if channels is not None:
        routes += [*Admin(channels, config).routes(), *Console().routes()]
    app = Starlette(
        routes=routes,
        exception_handlers={LLMOSError: _os_error, HTTPException: _http_error, Exception: _bug},
    )
    return Observed(app, metrics)


async def _os_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, LLMOSError)
    return JSONResponse(errors.body(exc), errors.row(exc).status, errors.headers(exc))


async def _http_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    message, status = exc.detail, exc.status_code
    if status == 404:
        message = f"There is no {request.url.path}; GET / lists what there is."
    elif status == 405:
        allowed = (exc.headers or {}).get("allow", "another method")
        message = f"{request.url.path} does not take {request.method}; use {allowed}."
    code = _HTTP_CODES.get(status, "http_error")
    content = errors.error_object(message, "invalid_request_error", code)
    return JSONResponse(content, status, exc.headers)


async def _bug(request: Request, exc: Exception) -> JSONResponse:
    # Starlette raises it again after this answer, so uvicorn logs it with its traceback.
    return await _os_error(
        request,
        Internal("BUG", f"Internal error ({type(exc).__name__}); see the gateway's log."),
    )
