"""How calls of the OS are made for a request: their deadline, class, tenant and trace."""

from __future__ import annotations

from starlette.requests import Request

from llmos.servers.gateway import trace
from llmos.servers.gateway.backend import Call


def of(request: Request, timeout_s: float) -> Call:
    """Return how to call for `request`."""
    note = trace.of(request.scope)
    metadata = [("llmos-class", note.call_class), ("x-request-id", note.request_id)]
    if note.tenant:
        metadata.append(("llmos-tenant", note.tenant))
    return Call(timeout_s, (*metadata, *note.passed_on))
