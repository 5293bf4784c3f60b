"""What a handler can ask about the call it serves, on either transport (port or plain gRPC).

Every function takes the servicer's `context`. Over a port the kernel vouches for the answers;
over a server's own gRPC address they come from the connection.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

from llmos.lib.host import host_id

_HOST = host_id()
T = TypeVar("T")


def caller(context: Any) -> str:
    """Return the instance id of the calling process, or `grpc:<peer>` for a plain client."""
    opened = getattr(context, "llmos_open", None)
    return opened.caller if opened is not None else f"grpc:{context.peer()}"


def tenant(context: Any) -> str:
    """Return who pays; `local` where nobody says."""
    opened = getattr(context, "llmos_open", None)
    return (opened.tenant if opened is not None else "") or "local"


def rank(context: Any) -> int:
    """Return the call's class, lower first: 1 SYSTEM, 2 INTERACTIVE, 3 NORMAL, 4 BATCH."""
    opened = getattr(context, "llmos_open", None)
    return (int(opened.call_class) if opened is not None else 0) or 3


def same_host(context: Any) -> bool:
    """Return whether the caller can open this host's files and shared memory."""
    opened = getattr(context, "llmos_open", None)
    if opened is not None:
        return bool(opened.caller_host == _HOST)
    return str(context.peer()).startswith("unix:")


def through_kernel(context: Any) -> bool:
    """Return whether the call came over the port, where messages must fit into frames."""
    return getattr(context, "llmos_open", None) is not None


def resume_log(context: Any) -> bytes:
    """Return what earlier servers of this stream appended by `append_resume_log`; b"" if none."""
    opened = getattr(context, "llmos_open", None)
    return bytes(context.llmos_resume) if opened is not None else b""


def append_resume_log(context: Any, delta: bytes) -> None:
    """Append to the stream's resume log together with the NEXT message that the handler yields.

    If this server dies after that message was delivered, the next server gets everything appended
    so far from `resume_log` and must go on right after it. Without a kernel this does nothing.
    """
    append = getattr(context, "llmos_append_resume", None)
    if append is not None:
        append(delta)


def progress(context: Any) -> None:
    """Say that work got done in a call that is long in coming to its next message or its end.

    A server with a stall time is taken for hung when calls are in progress and none sends, ends or
    says this in that time. To be called where something was finished (bytes copied, a step
    computed), as often as one likes, never by a clock alone. Without a kernel this does nothing.
    """
    say = getattr(context, "llmos_progress", None)
    if say is not None:
        say()


def background(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run `work` in a task that belongs to no call.

    Calls made in a handler (and in tasks that it starts) are children of the call being handled
    and are cancelled with it; work that is shared by several calls, or outlives one, must not be.
    """
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())
