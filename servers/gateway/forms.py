"""Multipart forms with one file."""

from __future__ import annotations

from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

from llmos.lib.errors import InvalidArgument
from llmos.servers.gateway import body
from llmos.servers.gateway.config import GatewayConfig

_FIELDS = 16


class Form(NamedTuple):
    """What was sent: plain fields by name, and the `file`, None without one."""

    fields: dict[str, str]
    name: str
    content: bytes | None


async def read(request: Request, config: GatewayConfig) -> Form:
    """Return the form. Raises InvalidArgument BAD_FORM and what `body.read` raises."""
    raw = await body.read(request, config.max_body_bytes, config.body_timeout_s)

    async def receive() -> Message:
        return {"type": "http.request", "body": raw, "more_body": False}

    try:
        form = Request(request.scope, receive).form(
            max_files=1, max_fields=_FIELDS, max_part_size=config.max_body_bytes
        )
        async with form as found:
            fields = {key: value for key, value in found.items() if isinstance(value, str)}
            file = found.get("file")
            if not isinstance(file, UploadFile):
                return Form(fields, "", None)
            return Form(fields, file.filename or "file", await file.read())
    except (MultiPartException, HTTPException, KeyError) as exc:
        said = getattr(exc, "detail", "") or getattr(exc, "message", "") or "it has no boundary"
        raise InvalidArgument("BAD_FORM", f"The form cannot be read: {said.rstrip('.')}.") from exc
