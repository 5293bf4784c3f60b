"""Keys that no port serves now: page faults, and servers that are away.

A key that is hot nowhere is faulted once, however many calls wait for it. Without a fault handler
they wait for a server, for a while.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmos.api.kernel.v1 import admin_pb2
from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.limits import Limits
from llmos.kernel.core.queues import KeyQueue
from llmos.kernel.core.state import Call, Export, Service, Stats
from llmos.lib.errors import LLMOSError, NotFound, Unavailable, Unimplemented

if TYPE_CHECKING:
    from llmos.kernel.core.scheduler import Scheduler

FAULT = "/llmos.api.kernel.v1.Pager/Fault"


class Absence:
    """Owns the timers of queues whose server is away."""

    def __init__(self, scheduler: Scheduler, limits: Limits, stats: Stats) -> None:
        """Work for a scheduler."""
        self._scheduler = scheduler
        self._limits = limits
        self._stats = stats
        self._timers: list[tuple[float, int, Service, KeyQueue]] = []
        self._order = itertools.count()

    def look(self, service: Service, queue: KeyQueue, now: float) -> None:
        """Calls wait for a key that no port serves: fault it once, or wait for a server."""
        handlers = (e for e in service.exports.values() if e.fault_handler and served([e]))
        if queue.key and (handler := next(handlers, None)) is not None:
            if queue.fault_tries >= self._limits.max_fault_tries:
                queue.fault_tries = 0
                said = f"{handler.port.name} answered that {queue.key!r} is ready, but no process"
                said += f" exports {service.name} for it."
                self._fail_all(queue, Unavailable("FAULT_WITHOUT_EFFECT", said))
            else:
                self._raise_fault(service, queue, handler, now)
        elif queue.timer_at is None:
            self._arm(service, queue, now)

    def _raise_fault(self, service: Service, queue: KeyQueue, handler: Export, now: float) -> None:
        first = queue.first()
        fault = Call(next(self._scheduler.call_ids), None, 0, FAULT, now)
        fault.service, fault.key, fault.call_class = service, queue.key, first.call_class
        fault.tenant, fault.payer = first.tenant, first.payer
        request = admin_pb2.FaultRequest(service=service.name, key=queue.key)
        fault.first = pb.Envelope(
            kind=pb.KIND_OPEN,
            payload=request.SerializeToString(),
            flags=pb.FLAG_MESSAGE | pb.FLAG_HALF_CLOSE,
            open=pb.Open(method=FAULT, key=queue.key),
        )
        queue.fault = fault
        queue.fault_tries += 1
        self._stats.faults += 1
        self._scheduler.deliver(fault, handler, now)

    def ended(self, fault: Call, error: LLMOSError | None, now: float, died: bool = False) -> None:
        """Take the answer of a fault handler: an error ends the calls that wait; or it `died`."""
        service = fault.service
        queue = service.queues.get(fault.key)
        if queue is None or queue.fault is not fault:
            return
        queue.fault = None
        if error is not None:
            self._fail_all(queue, error)
        elif died:
            queue.fault_tries -= 1
        elif served(service.hot.get(fault.key, [])):
            queue.fault_tries = 0
        self._scheduler.serve_queue(service, queue, now)

    def _fail_all(self, queue: KeyQueue, error: LLMOSError) -> None:
        for call in queue.calls():
            if call.queue is queue:  # it may have ended with one before it
                self._scheduler.fail(call, error)

    # Servers that are away.

    def _arm(self, service: Service, queue: KeyQueue, now: float) -> None:
        oldest = min(call.queued_at for call in queue.calls())
        queue.timer_at = max(now, oldest + self._grace(service, queue.key))
        heapq.heappush(self._timers, (queue.timer_at, next(self._order), service, queue))

    def _grace(self, service: Service, key: str) -> float:
        limits = self._limits
        known = service.seen and knows(service, key)
        return limits.absence_grace_s if known else limits.startup_grace_s

    def next_timer(self) -> float | None:
        """Return when `expire` has something to do."""
        return self._timers[0][0] if self._timers else None

    def expire(self, now: float) -> None:
        """End calls that waited too long for a server that is away."""
        while self._timers and self._timers[0][0] <= now:
            _, _, service, queue = heapq.heappop(self._timers)
            queue.timer_at = None
            if service.queues.get(queue.key) is not queue or queue.fault is not None:
                continue
            if served(service.hot.get(queue.key, [])):
                continue
            grace = self._grace(service, queue.key)
            for call in queue.calls():
                if call.queued_at + grace <= now and call.queue is queue:
                    self._scheduler.fail(call, _nobody(service, call, grace))
            if queue.count:
                self._arm(service, queue, now)


def served(exports: Iterable[Export]) -> bool:
    """Return whether one of the ports takes new calls."""
    return any(not e.port.draining and not e.port.stalled for e in exports)


def knows(service: Service, key: str) -> bool:
    """Return whether somebody serves a key, did, or would be asked to."""
    return not key or key in service.known_keys or service.handled


def unknown(service: Service, key: str) -> LLMOSError | None:
    """Return the error of a call for a service or a key that nobody knows, if nobody does."""
    name = service.name
    if not service.seen:
        cure = "`llmos-ctl kernel services` lists those there are."
        return Unimplemented("NO_SUCH_SERVICE", f"No process exports the service {name}; {cure}")
    if not knows(service, key):
        return NotFound("NO_SUCH_KEY", f"No process exports {name} for the key {key!r}.")
    return None


def _nobody(service: Service, call: Call, grace: float) -> LLMOSError:
    what = f"{service.name} for {call.key!r}" if call.key else service.name
    return unknown(service, call.key) or Unavailable(
        "NO_SERVER",
        f"The server of {what} is away and did not come back within {grace:.0f} s; the call "
        f"{'may have run on its last one' if call.attempts else 'has not run'}.",
        retry_after_s=1.0,
    )
