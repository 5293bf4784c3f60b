"""Binds servicers to their callers: each call runs as its tenant, and behind its fence."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator
from typing import Any

from llmos.lib.call import tenant
from llmos.lib.errors import InvalidArgument
from llmos.servers.storage import caller
from llmos.servers.storage.caller import Caller, Fence

FENCE = "llmos-fence"
_MAX_TOKEN = 2**63 - 1


class Bound:
    """Stands in for a servicer; every call sets `caller.current()` first."""

    def __init__(self, servicer: Any) -> None:
        """Wrap `servicer`, whose handlers are coroutines or asynchronous generators."""
        self._servicer = servicer

    def __getattr__(self, name: str) -> Any:
        """Return a handler, bound."""
        handler = getattr(self._servicer, name)
        if inspect.isasyncgenfunction(handler):

            @functools.wraps(handler)
            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                caller.become(of(context))  # for the task, which serves this call only
                replies = handler(request, context)
                try:
                    async for reply in replies:
                        yield reply
                finally:
                    await replies.aclose()

            return stream

        @functools.wraps(handler)
        async def unary(request: Any, context: Any) -> Any:
            caller.become(of(context))
            return await handler(request, context)

        return unary


def of(context: Any) -> Caller:
    """Return who makes a call. Raises InvalidArgument BAD_FENCE."""
    found = [value for key, value in context.invocation_metadata() or () if key == FENCE]
    if len(found) > 1:
        raise InvalidArgument("BAD_FENCE", f"The call has {len(found)} {FENCE}; send one.")
    return Caller(tenant(context), parse(found[0]) if found else None)


def parse(text: str | bytes) -> Fence:
    """Return the fence that `LOCK:TOKEN` means. Raises InvalidArgument BAD_FENCE."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    lock, _, token = text.rpartition(":")
    if lock and lock.isprintable() and token.isascii() and token.isdigit() and len(token) < 20:
        if int(token) <= _MAX_TOKEN:
            return Fence(lock, int(token))
    raise InvalidArgument(
        "BAD_FENCE", f"{FENCE} is {text[:100]!r}; it must be LOCK:TOKEN as AcquireLock gave it."
    )
