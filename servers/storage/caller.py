"""On whose behalf the current task works: the tenant, and the lock that it says it holds.

`binding.py` sets it for every call; work that belongs to no call has the default. Threads made by
asyncio.to_thread inherit it.
"""

from __future__ import annotations

import contextvars
from dataclasses import dataclass

LOCAL = "local"  # the tenant where nobody says; as in llmos.lib.call


@dataclass(frozen=True, slots=True)
class Fence:
    """A lock that the caller must hold for its call to change anything."""

    lock: str
    token: int


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls; `fence` is None when the call requires no lock."""

    tenant: str = LOCAL
    fence: Fence | None = None


_current: contextvars.ContextVar[Caller] = contextvars.ContextVar(
    "llmos_storage_caller",
    default=Caller(),  # noqa: B039  # frozen
)


def current() -> Caller:
    """Return who is being served."""
    return _current.get()


def become(caller: Caller) -> contextvars.Token[Caller]:
    """Work for `caller` from here on, in this task and what it starts."""
    return _current.set(caller)


def restore(token: contextvars.Token[Caller]) -> None:
    """Undo `become`."""
    _current.reset(token)
