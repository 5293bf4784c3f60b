"""The one table from the OS's errors to HTTP, and the error body of the OpenAI API."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from starlette.responses import JSONResponse

from llmos.lib.errors import LLMOSError


class Row(NamedTuple):
    """How a gRPC code looks over HTTP."""

    status: int
    type: str


_REQUEST, _SERVER = "invalid_request_error", "server_error"
TABLE: dict[int, Row] = {
    1: Row(499, _REQUEST),  # CANCELLED: the client went away
    3: Row(400, _REQUEST),  # INVALID_ARGUMENT
    4: Row(504, _SERVER),  # DEADLINE_EXCEEDED
    5: Row(404, _REQUEST),  # NOT_FOUND
    6: Row(409, _REQUEST),  # ALREADY_EXISTS
    7: Row(403, "permission_error"),  # PERMISSION_DENIED
    8: Row(429, "rate_limit_error"),  # RESOURCE_EXHAUSTED
    9: Row(400, _REQUEST),  # FAILED_PRECONDITION
    10: Row(409, _REQUEST),  # ABORTED
    11: Row(400, _REQUEST),  # OUT_OF_RANGE
    12: Row(501, _SERVER),  # UNIMPLEMENTED
    14: Row(503, _SERVER),  # UNAVAILABLE
    16: Row(401, "authentication_error"),  # UNAUTHENTICATED
}
OTHER = Row(500, _SERVER)
# Reasons for which clients of the OpenAI API know another word.
_CODES = {
    "NO_SUCH_MODEL": "model_not_found",
    "NO_SUCH_VERSION": "model_not_found",
    "CONTEXT_OVERFLOW": "context_length_exceeded",
}
# The parameter at fault, where the error does not say it in its details.
_PARAMS = {
    "NO_SUCH_MODEL": "model",
    "NO_SUCH_VERSION": "model",
    "NO_SUCH_ALIAS": "model",
    "BAD_NAME": "model",
    "WRONG_TASK": "model",
    "BAD_CHAT": "messages",
    "EMPTY_INPUT": "input",
}
_DEFAULT_RETRY_S = 1.0


def row(exc: LLMOSError) -> Row:
    """Return how `exc` looks over HTTP."""
    return TABLE.get(exc.code, OTHER)


def body(exc: LLMOSError) -> dict[str, Any]:
    """Return the error object for `exc`."""
    code = _CODES.get(exc.reason, exc.reason.lower())
    param = exc.details.get("param") or _PARAMS.get(exc.reason)
    return error_object(exc.message or f"The call failed ({code}).", row(exc).type, code, param)


def error_object(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """Return an error object of the OpenAI API."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def headers(exc: LLMOSError) -> dict[str, str]:
    """Return headers that say when to come again, where that is known or where 503 wants it."""
    delay = exc.retry_after_s
    if delay is None and row(exc).status == 503:
        delay = _DEFAULT_RETRY_S
    if delay is None:
        return {}
    return {"retry-after": str(math.ceil(delay)), "retry-after-ms": str(round(delay * 1000))}


def response(path: str, exc: LLMOSError) -> JSONResponse:
    """Return the answer to a request to `path`; /v2 has an error body of its own."""
    content = {"error": str(exc.message or exc)} if path.startswith("/v2") else body(exc)
    return JSONResponse(content, row(exc).status, headers(exc))
