"""When leases end: deadlines in memory, on a clock that nobody can set. For one event loop.

Deadlines are not stored: a server that starts gives every lease its full time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmos.servers.storage.state.model import Lease
from llmos.servers.storage.state.writer import no_such_lease

LeaseKey = tuple[str, str]  # tenant, id


@dataclass(slots=True)
class _Running:
    ttl_ms: int
    owner: str
    deadline: float
    over: bool = False  # it ends: it cannot be renewed any more


class LeaseClock:
    """All leases of all tenants."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Start with none. now: seconds; CLOCK_MONOTONIC stands still while the host sleeps."""
        self._now = now
        self._running: dict[LeaseKey, _Running] = {}

    def start(self, tenant: str, id: str, ttl_ms: int, owner: str) -> Lease:
        """Give a lease its full time."""
        deadline = self._now() + ttl_ms / 1000
        self._running[tenant, id] = _Running(ttl_ms, owner, deadline)
        return Lease(id, ttl_ms, ttl_ms, owner)

    def renew(self, tenant: str, id: str) -> Lease:
        """Give a lease its full time again. Raises NO_SUCH_LEASE."""
        lease = self.get(tenant, id)
        return self.start(tenant, id, lease.ttl_ms, lease.owner)

    def get(self, tenant: str, id: str) -> Lease:
        """Return a lease. Raises NO_SUCH_LEASE."""
        running = self._running.get((tenant, id))
        if running is None or running.over:
            raise no_such_lease(id)
        left = max(0, int((running.deadline - self._now()) * 1000))
        return Lease(id, running.ttl_ms, left, running.owner)

    def of(self, tenant: str) -> list[Lease]:
        """Return a tenant's leases by id."""
        mine = [key for key, running in self._running.items() if not running.over]
        return [self.get(*key) for key in sorted(mine) if key[0] == tenant]

    def drop(self, keys: Iterable[LeaseKey]) -> None:
        """Forget leases."""
        for key in keys:
            self._running.pop(key, None)

    def end(self, key: LeaseKey) -> None:
        """From now on a lease is not there, though it waits to be dropped."""
        self._running[key].over = True

    def again(self, key: LeaseKey, seconds: float) -> None:
        """Let `ended` return a lease again after so many seconds: ending it failed."""
        self._running[key].deadline = self._now() + seconds

    def ended(self) -> list[LeaseKey]:
        """Return the leases whose time is over, the first first; they stay until dropped."""
        now = self._now()
        over = [(r.deadline, key) for key, r in self._running.items() if r.deadline <= now]
        return [key for _, key in sorted(over)]

    def next_s(self) -> float | None:
        """Return the seconds until the next lease ends; None when there is none."""
        if not self._running:
            return None
        return max(0.0, min(r.deadline for r in self._running.values()) - self._now())

    def restart(self) -> None:
        """Give all leases their full time."""
        for running in self._running.values():
            running.deadline = self._now() + running.ttl_ms / 1000

    def postpone(self, seconds: float) -> None:
        """Give all leases more time: so long the server could not hear renewals."""
        for running in self._running.values():
            running.deadline += seconds
