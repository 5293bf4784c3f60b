"""Decides when the leases of dead processes go: a state machine over the kernel's port events.

A process that detaches may only have lost its stream, so it gets a moment to come back. While the
kernel itself is away nobody can renew through it, so the leases of its processes do not run out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.record import PLAIN, process_of

log = logging.getLogger(__name__)


class Reclaimer:
    """Drops leases from `store`; `tick` must be called about once a second."""

    def __init__(
        self,
        store: BufferStore,
        *,
        watching: bool,
        detach_grace_s: float = 2.0,
        sync_grace_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without knowing any process. watching: there is a kernel that will tell."""
        self._store = store
        self._clock = clock
        self._detach_grace_s = detach_grace_s
        self._sync_grace_s = sync_grace_s
        self._kernel_away = watching
        self._present: dict[str, set[int]] = {}  # instance -> its ports
        self._gone: dict[str, float] = {}  # instance -> when its leases are dropped

    def attached(self, instance: str, port: int) -> None:
        """Note that a process is there (again)."""
        self._present.setdefault(instance, set()).add(port)
        self._gone.pop(instance, None)

    def detached(self, instance: str, port: int) -> None:
        """Start the clock for a process that is gone. It may have a newer port already."""
        ports = self._present.get(instance, set())
        ports.discard(port)
        if not ports:
            self._present.pop(instance, None)
            self._gone[instance] = self._clock() + self._detach_grace_s

    def lost(self) -> None:
        """Note that the kernel is away: what was known about processes is no longer."""
        self._kernel_away = True
        self._present.clear()
        self._gone.clear()

    def synced(self) -> None:
        """Start the clock for every lessee that did not come back with the kernel."""
        self._kernel_away = False
        until = self._clock() + self._sync_grace_s
        for lessee in self._store.lessees():
            if lessee.startswith(PLAIN):
                continue
            self._store.extend(lessee, self._sync_grace_s)
            if process_of(lessee) not in self._present:
                self._gone.setdefault(process_of(lessee), until)

    def tick(self) -> None:
        """Drop what is due."""
        now = self._clock()
        for instance in [i for i, until in self._gone.items() if until <= now]:
            del self._gone[instance]
            if dropped := self._store.drop_process(instance):
                log.info("reclaimed", extra={"instance": instance, "leases": dropped})
        away = self._kernel_away
        expired = self._store.expire(spare=lambda who: away and not who.startswith(PLAIN))
        if expired:
            log.info("leases ran out", extra={"leases": expired})
