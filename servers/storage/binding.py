"""Binds servicers to their callers: each call runs as its tenant, and behind its fence."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Collection
from typing import Any

from llmos.lib.call import tenant
from llmos.lib.errors import InvalidArgument, PermissionDenied
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
                self._check(name, request)
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
            self._check(name, request)
            return await handler(request, context)

        return unary

    def _check(self, name: str, request: Any) -> None:
        """Raise what keeps the current caller from calling `name`."""


class ForAdmins(Bound):
    """Serves the tenants that look after this server; what is everybody's is not for the others."""

    def __init__(
        self, servicer: Any, admins: Collection[str], *, all_may: Collection[str] = ()
    ) -> None:
        """Wrap `servicer`. all_may: methods for all; of one with a `tenant`, for their own."""
        super().__init__(servicer)
        self._admins = admins
        self._all_may = all_may

    def _check(self, name: str, request: Any) -> None:
        """Raise PermissionDenied NOT_ADMIN."""
        who = caller.current().tenant
        own = getattr(request, "tenant", "") in ("", who)
        if who in self._admins or (name in self._all_may and own):
            return
        raise PermissionDenied(
            "NOT_ADMIN",
            f"Tenant {who[:100]!r} may not call {name}: it concerns all tenants; ask whoever runs "
            "this LLM OS, who can name more tenants in `admins` of [storage].",
        )


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
