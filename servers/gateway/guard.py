"""Lets requests to the APIs in by key, and pages of other origins where that is allowed."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from llmos.lib.errors import LLMOSError
from llmos.servers.gateway import errors, trace
from llmos.servers.gateway.keys import Keys

_GUARDED = ("/v1/", "/v2")


class KeyGuard:
    """ASGI middleware: no request of an API passes without a key, before its body is read."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        """Guard `app`."""
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"].startswith(_GUARDED):
            try:
                key = self._keys.find(HTTPConnection(scope))
            except LLMOSError as exc:
                response = errors.response(scope["path"], exc)
                response.headers["www-authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
            note = trace.of(scope)
            note.tenant, note.call_class = key.tenant, key.call_class
        await self._app(scope, receive, send)


def cors(app: ASGIApp, origins: str) -> ASGIApp:
    """Return `app` so that pages of these origins (by commas; `*` = all) may use the APIs."""
    allowed = [origin.strip() for origin in origins.split(",") if origin.strip()]
    if not allowed:
        return app
    middleware = CORSMiddleware(
        app,
        allow_origins=allowed,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after", "retry-after-ms"],
    )

    async def only_apis(scope: Scope, receive: Receive, send: Send) -> None:
        # The console and /llmos/v1 stay with their own origin, whatever is set here.
        is_api = scope["type"] == "http" and scope["path"].startswith(_GUARDED)
        answer = middleware if is_api and "origin" in Headers(scope=scope) else app
        await answer(scope, receive, send)

    return only_apis
