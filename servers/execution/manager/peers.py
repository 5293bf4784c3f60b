"""Calling other servers: deadlines, and patience with one that is being restarted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from llmos.lib.errors import LLMOSError, Unavailable, Unimplemented
from llmos.lib.rpc import from_rpc_error

CALL_S = 30.0  # deadline of one call that answers at once when all is well

T = TypeVar("T")


async def patient(make: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Return the answer of the call that `make` makes; try again while nobody answers.

    Raises the error of ours that the status stands for, UNAVAILABLE only after `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    delay = 0.05
    while True:
        try:
            return await once(make())
        except LLMOSError as exc:
            if not _passing(exc) or time.monotonic() + delay > deadline:
                raise
        await asyncio.sleep(delay)
        delay = min(delay * 2, 1.0)


async def once(call: Awaitable[T]) -> T:
    """Return the answer of a call. Raises the error of ours that its status stands for."""
    try:
        return await call
    except grpc.RpcError as exc:
        raise from_rpc_error(exc) from exc


def _passing(exc: LLMOSError) -> bool:
    """Return whether the server may be back soon: it is not there, or not attached yet."""
    return isinstance(exc, Unavailable) or (
        isinstance(exc, Unimplemented) and exc.reason == "NO_SUCH_SERVICE"
    )
