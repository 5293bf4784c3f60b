"""Lines of a batch: read and checked from a file, and answered by the gateway's own endpoints."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message

from llmos.lib.errors import InvalidArgument
from llmos.servers.gateway import trace

Json = dict[str, Any]
MAX_LINES = 50_000
_TRIES = 5  # of a line that is told to come again
_LONGEST_S = 30.0


class Line(NamedTuple):
    """One request."""

    number: int
    custom_id: str
    path: str
    body: bytes


class Answer(NamedTuple):
    """What an endpoint answered."""

    status: int
    request_id: str
    retry_after_s: float | None
    body: Any


Ask = Callable[[str, bytes, str], Awaitable[Answer]]


def lines_of(content: bytes, endpoint: str) -> list[Line]:
    """Return the lines of a file. Raises InvalidArgument BAD_BATCH naming the line at fault."""
    found: list[Line] = []
    seen: set[str] = set()
    for number, text in enumerate(content.splitlines(), 1):
        if not text.strip():
            continue
        if len(found) == MAX_LINES:
            raise _bad(number, f"over {MAX_LINES:,} requests; split the file")
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            raise _bad(number, "not JSON") from None
        if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
            raise _bad(number, "no object with a `custom_id`")
        if line["custom_id"] in seen:
            raise _bad(number, "a `custom_id` that came before")
        if line.get("method", "POST") != "POST" or line.get("url") != endpoint:
            raise _bad(number, f"another `url` or `method` than POST {endpoint}")
        if not isinstance(line.get("body"), dict) or line["body"].get("stream"):
            raise _bad(number, "no `body`, or one that wants a stream")
        seen.add(line["custom_id"])
        found.append(Line(number, line["custom_id"], endpoint, json.dumps(line["body"]).encode()))
    if not found:
        raise InvalidArgument("BAD_BATCH", "The input file has no requests; one a line, as JSON.")
    return found


def _bad(number: int, why: str) -> InvalidArgument:
    return InvalidArgument("BAD_BATCH", f"Line {number} of the input file is wrong: {why}.")


def asker(app: ASGIApp) -> Ask:
    """Return what answers by the endpoints of `app`, for a tenant, in the class BATCH."""

    async def ask(path: str, body: bytes, tenant: str) -> Answer:
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json")],
            "client": None,
            "server": None,
        }
        note = trace.begin(scope)
        note.tenant, note.call_class = tenant, "batch"
        sent = False
        status, headers, parts = 500, {}, []

        async def receive() -> Message:
            nonlocal sent
            if sent:  # nobody goes away before the answer is there
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], dict(message["headers"])
            else:
                parts.append(message.get("body", b""))

        await app(scope, receive, send)
        after = headers.get(b"retry-after-ms")
        delay = int(after) / 1000 if after else None
        return Answer(status, note.request_id, delay, json.loads(b"".join(parts)))

    return ask


async def answered(ask: Ask, line: Line, tenant: str) -> Json:
    """Answer a line, again when it is told to come again; return what is kept of it."""
    for left in range(_TRIES - 1, -1, -1):
        answer = await ask(line.path, line.body, tenant)
        if answer.retry_after_s is None or answer.status not in (429, 503) or not left:
            break
        await asyncio.sleep(min(answer.retry_after_s, _LONGEST_S))
    response = {
        "status_code": answer.status,
        "request_id": answer.request_id,
        "body": answer.body,
    }
    result = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": response,
        "error": None if answer.status < 400 else answer.body.get("error"),
    }
    return {"line": line.number, "ok": answer.status < 400, "result": result}
