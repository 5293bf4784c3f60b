"""The gateway as one ASGI application over a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from llmos.lib.errors import Internal, LLMOSError
from llmos.servers.gateway import errors, openapi
from llmos.servers.gateway.admin import Admin, Channels
from llmos.servers.gateway.api import OpenAI
from llmos.servers.gateway.backend import Backend
from llmos.servers.gateway.batch_run import asker
from llmos.servers.gateway.batches import Batches
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.counts import Counts
from llmos.servers.gateway.documents import Documents
from llmos.servers.gateway.files import Files
from llmos.servers.gateway.finetuning import FineTuning
from llmos.servers.gateway.guard import KeyGuard, cors
from llmos.servers.gateway.keys import Keys
from llmos.servers.gateway.metrics import Metrics
from llmos.servers.gateway.observe import Observed
from llmos.servers.gateway.oip import OpenInference
from llmos.servers.gateway.ops import Ops
from llmos.servers.gateway.transcriptions import Transcriptions
from llmos.servers.gateway.webconsole import Console

if TYPE_CHECKING:
    from llmos.servers.gateway.telemetry import Telemetry

_HTTP_CODES = {
    404: "unknown_route",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
}


def build(
    backend: Backend,
    config: GatewayConfig,
    channels: Channels | None = None,
    keys: Keys | None = None,
    telemetry: Telemetry | None = None,
    metrics: Metrics | None = None,
    counts: Counts | None = None,
) -> ASGIApp:
    """Return the application; without `channels` it has the APIs of `backend` alone.

    keys: who may use the APIs; None = everybody. telemetry: who is told of every request.
    metrics: where requests are counted. counts: the same of all processes on the port.
    """
    metrics = metrics or Metrics()
    app: ASGIApp = _application(routes_of(backend, config, channels, keys, metrics, counts))
    if keys is not None:
        app = KeyGuard(app, keys)
    return Observed(cors(app, config.cors_origins), metrics, telemetry)


def routes_of(
    backend: Backend,
    config: GatewayConfig,
    channels: Channels | None = None,
    keys: Keys | None = None,
    metrics: Metrics | None = None,
    counts: Counts | None = None,
) -> list[BaseRoute]:
    """Return what the application serves; the arguments are `build`'s."""
    metrics = metrics or Metrics()
    routes: list[BaseRoute] = [
        *OpenAI(backend, config, metrics, channels).routes(),
        *Ops(backend, counts or metrics, channels).routes(),
        *openapi.routes(),
    ]
    if channels is None:
        return routes
    routes += [
        *OpenInference(lambda: channels("execution"), config).routes(),
        *Transcriptions(channels, config).routes(),
        *Admin(channels, config, keys).routes(),
        *Console().routes(),
    ]
    documents = Documents(lambda: channels("storage"))
    files = Files(documents, config)
    # Lines of a batch are answered by the very endpoints that answer requests.
    batches = Batches(documents, files, asker(_application(list(routes))), config)
    fine_tuning = FineTuning(channels, files, config)
    return [*routes, *files.routes(), *batches.routes(), *fine_tuning.routes()]


def _application(routes: list[BaseRoute]) -> Starlette:
    handlers: Any = {LLMOSError: _os_error, HTTPException: _http_error, Exception: _bug}
    return Starlette(routes=routes, exception_handlers=handlers)


async def _os_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, LLMOSError)
    return errors.response(request.url.path, exc)


async def _http_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    message, status = exc.detail, exc.status_code
    if status == 404:
        message = f"There is no {request.url.path}; GET / lists what there is."
    elif status == 405:
        allowed = (exc.headers or {}).get("allow", "another method")
        message = f"{request.url.path} does not take {request.method}; use {allowed}."
    code = _HTTP_CODES.get(status, "http_error")
    content: dict[str, Any] = errors.error_object(message, "invalid_request_error", code)
    if request.url.path.startswith("/v2"):
        content = {"error": message}
    return JSONResponse(content, status, exc.headers)


async def _bug(request: Request, exc: Exception) -> JSONResponse:
    # Starlette raises it again after this answer, so uvicorn logs it with its traceback.
    return await _os_error(
        request,
        Internal("BUG", f"Internal error ({type(exc).__name__}); see the gateway's log."),
    )
