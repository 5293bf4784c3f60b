"""Who serves a waiting call: keys, credits, classes. What no port serves is for `absence`.

The order within a key is that of `queues.KeyQueue`. A port is chosen by hot key, free credits,
affinity (rendezvous hashing), least expected work.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.absence import Absence, served, unknown
from llmos.kernel.core.limits import Limits
from llmos.kernel.core.queues import AGED_EVERY, KeyQueue
from llmos.kernel.core.state import Call, Export, PortState, Service, Stats
from llmos.kernel.core.tenants import Tenant
from llmos.lib.errors import DeadlineExceeded, LLMOSError, ResourceExhausted

_PACK_FROM = 1000  # calls that wait; what comes on top keeps its OPEN encoded


class Scheduler:
    """Owns services and queues. Calls back to hand a call to a port, or to end it."""

    def __init__(
        self,
        limits: Limits,
        stats: Stats,
        deliver: Callable[[Call, Export, float], None],
        fail: Callable[[Call, LLMOSError], None],
    ) -> None:
        """Start without services."""
        self.services: dict[str, Service] = {}
        self.tenants: dict[str, Tenant] = {}  # all seen or limited
        self.queued = 0
        self.started: float | None = None
        self.call_ids = itertools.count(1)
        self._limits = limits
        self._stats = stats
        self.deliver = deliver
        self.fail = fail
        self.absence = Absence(self, limits, stats)
        self._dispatched = 0

    # Calls.

    def submit(self, call: Call, now: float) -> None:
        """Dispatch a call or queue it. Raises what it must be refused with."""
        service = call.service
        queue = service.queues.get(call.key)
        if queue is None:
            refused = unknown(service, call.key)  # but servers may still attach to a new kernel
            if refused and now - (self.started or now) >= self._limits.startup_grace_s:
                raise refused
            queue = service.queues[call.key] = KeyQueue(call.key)
        call.queued_at = now
        if not queue.count:
            hot = service.hot.get(call.key)
            if hot is not None and (export := self._pick(hot, call, call.call_class)) is not None:
                self._dispatch(queue, call, export, now)
                return
        limits = self._limits
        if not call.attempts and (
            self.queued >= limits.max_queued or queue.count >= limits.max_queued_per_key
        ):
            self.tidy(service, queue)
            raise ResourceExhausted(
                "QUEUE_FULL",
                f"{queue.count} calls wait for {service.name} {call.key!r}; try again later.",
                retry_after_s=1.0,
            )
        if call.deadline is not None and queue.count and not call.attempts:
            need = queue.wait_s(call.call_class) + queue.estimate(call.path).likely()
            if now + need > call.deadline:
                raise _too_late(call, need, now)
        queue.push(call)
        self.queued += 1
        if self.queued > _PACK_FROM:
            call.pack()
        service.waiting[call.key] = queue
        self.serve_queue(service, queue, now)
        if call.queue is not None:
            self._hurry(self._awaited(service, queue, call), call.call_class, now)

    def _awaited(self, service: Service, queue: KeyQueue, call: Call) -> list[Call]:
        """Return what a call waits for: its key's fault, or a worse call with its credit."""
        if queue.fault is not None:
            return [queue.fault]
        for export in service.hot.get(queue.key, ()):
            if export.worst > call.call_class:
                for number, other in export.port.serving.items():
                    if (
                        other.call_class > call.call_class
                        and other.server_id == number
                        and other.export is export
                    ):
                        return [other]
                export.worst = call.call_class
        return []

    def _hurry(self, calls: list[Call], call_class: int, now: float) -> None:
        """Give calls, and what is done for them, a better class, because a better call waits.

        So that no priority is inverted (Sha, Rajkumar and Lehoczky, "Priority Inheritance
        Protocols", IEEE Transactions on Computers 39(9), 1990).
        """
        while calls:
            call = calls.pop()
            if call_class >= call.call_class:
                continue
            if (queue := call.queue) is None:
                call.call_class = call_class
            else:
                queue.raise_class(call, call_class)
                self.serve_queue(call.service, queue, now)  # its class may have credits reserved
                if call.queue is not None:
                    calls += self._awaited(call.service, queue, call)
            calls += call.children or ()

    def _dispatch(self, queue: KeyQueue, call: Call, export: Export, now: float) -> None:
        """Hand a call to a port, unless it is clear that it would be late."""
        times = queue.estimate(call.path)
        if call.deadline is not None:
            need = times.likely() if queue.count else times.at_least()
            if now + need > call.deadline:
                self.fail(call, _too_late(call, need, now))
                return
        queue.charge(call)
        export.turn += 1
        export.worst = max(export.worst, call.call_class)
        self._dispatched += 1
        queue.served = self._dispatched
        call.home = queue
        call.expected = times.mean
        self.deliver(call, export, now)

    def withdraw(self, call: Call) -> None:
        """Take a waiting call out of its queue."""
        queue = call.queue
        if queue is not None:
            queue.take(call)
            self.queued -= 1
            self.tidy(call.service, queue)

    def tidy(self, service: Service, queue: KeyQueue) -> None:
        """Drop a queue in which nothing waits and for which no port is hot."""
        if queue.count:
            return
        service.waiting.pop(queue.key, None)
        if queue.fault is None and queue.key not in service.hot:
            if service.queues.get(queue.key) is queue:
                del service.queues[queue.key]
            self.forget(service)

    def forget(self, service: Service) -> None:
        """Drop a service that nobody ever exported and nobody waits for."""
        if not service.seen and not service.queues:
            self.services.pop(service.name, None)

    # Choosing.

    def _pick(self, hot: list[Export], call: Call, call_class: int) -> Export | None:
        best: Export | None = None
        for export in hot:
            if export.admits(call_class) and (
                best is None or (export.work, export.running) < (best.work, best.running)
            ):
                best = export
        if best is None or not call.affinity or len(hot) == 1:
            return best
        # Highest random weight (Thaler and Ravishankar 1998): the same hint goes to the same port
        # as long as that port is not clearly busier than the least busy one.
        near = [e for e in hot if e.admits(call_class) and e.running <= best.running + 2]
        return max(near, key=lambda e: zlib.crc32(f"{call.affinity}/{e.port.id}".encode()))

    def serve_queue(self, service: Service, queue: KeyQueue, now: float) -> None:
        """Dispatch what can be; fault the key or wait for a server where it is hot nowhere."""
        hot = service.hot.get(queue.key, [])
        self._serve(service, [queue], hot, now)
        if queue.count and queue.fault is None and not served(hot):
            self.absence.look(service, queue, now)
        self.tidy(service, queue)

    def credit_returned(self, export: Export, now: float) -> None:
        """Look whether calls wait for what `export` serves."""
        service = self.services.get(export.service)
        if service is None or not service.waiting:
            return
        queues = [q for key in export.keys if (q := service.waiting.get(key)) is not None]
        self._serve(service, queues, [export], now)

    def _serve(
        self, service: Service, queues: list[KeyQueue], exports: list[Export], now: float
    ) -> None:
        """Dispatch from `queues` what `exports` take, until they take no more."""
        while exports and (queues := [q for q in queues if q.count]):
            call, export = self._next(queues, exports, now)
            if export is None:
                return
            queue = call.queue
            assert queue is not None
            queue.take(call)
            self.queued -= 1
            self._dispatch(queue, call, export, now)
            self.tidy(service, queue)

    def _next(
        self, queues: list[KeyQueue], exports: list[Export], now: float
    ) -> tuple[Call, Export | None]:
        """Return the next call and who takes it: the best class, from the key served longest ago;
        but every AGED_EVERY-th turn of an export is for the call longest over the ageing bound."""
        due = [e for e in exports if e.turn % AGED_EVERY == 0]
        if due:
            call = min((q.oldest() for q in queues), key=lambda c: c.queued_at)
            if now - call.queued_at >= self._limits.ageing_s and (
                export := self._pick(due, call, pb.CALL_CLASS_SYSTEM)
            ):
                return call, export
        calls = [queue.first() for queue in queues]
        call = calls[0]
        if len(calls) > 1:
            call = min(calls, key=lambda c: (c.call_class, c.queue.served if c.queue else 0))
        return call, self._pick(exports, call, call.call_class)

    def ended(self, call: Call, cost: float, now: float, finished: bool = True) -> None:
        """Bill a call that was dispatched; learn from it if its work was not broken off."""
        flow, home, payer = call.flow, call.home, call.payer
        if flow is not None and home is not None and payer is not None:
            seconds = now - call.dispatched_at
            flow.owner.settle(flow, call.charged, cost or seconds)
            payer.bill(cost or seconds)
            call.flow = None
            if finished:
                home.estimate(call.path).add(seconds)
                home.finished(now)

    def changed(self, service: Service, now: float) -> None:
        """Look at all queues of a service again, because its exports changed."""
        for export in list(service.exports.values()):
            self.credit_returned(export, now)
        for queue in list(service.queues.values()):
            self.serve_queue(service, queue, now)

    # Exports.

    def service(self, name: str) -> Service:
        """Return the service called `name`, known from now on."""
        return self.services.setdefault(name, Service(name))

    def tenant(self, name: str) -> Tenant:
        """Return a tenant, known from now on."""
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.tenants[name] = Tenant(name)
        return tenant

    def export_changed(self, export: Export, old_keys: tuple[str, ...], now: float) -> None:
        """Take new keys, credits or flags of an export; without keys it is withdrawn."""
        service = self.service(export.service)
        old = set(old_keys)
        for key in old - set(export.keys):
            hot = service.hot[key]
            hot.remove(export)
            if not hot:
                del service.hot[key]
                if (queue := service.queues.get(key)) is not None:
                    self.tidy(service, queue)
        for key in export.keys:
            if key not in old:
                service.hot.setdefault(key, []).append(export)
        service.known_keys.update(export.keys)
        if len(service.known_keys) > 2 * self._limits.max_keys:
            service.known_keys = set(service.hot)
        if export.keys:
            service.seen = True
            service.handled = service.handled or export.fault_handler
            service.exports[export.port.id] = export
        else:
            service.exports.pop(export.port.id, None)
        for queue in service.queues.values():
            queue.fault_tries = 0 if queue.fault is None else queue.fault_tries
        self.changed(service, now)
        self.forget(service)

    def progress(self, port: PortState, now: float) -> None:
        """`port` does its work; if it was thought to hang, it takes calls again."""
        port.last_progress = now
        if port.stalled:
            port.stalled = False
            self.port_changed(port, now)

    def port_changed(self, port: PortState, now: float) -> None:
        """Look at the queues again, because `port` takes no new calls any more, or does again."""
        for name, export in port.exports.items():
            if export.keys:
                self.changed(self.services[name], now)


def _too_late(call: Call, need_s: float, now: float) -> LLMOSError:
    assert call.deadline is not None
    return DeadlineExceeded(
        "DEADLINE_CANNOT_BE_MET",
        f"{call.path} is expected to need {need_s:.3g} s from now and "
        f"{max(0.0, call.deadline - now):.3g} s remain; it was not started.",
        details={"estimate_s": f"{need_s:.6f}"},
    )
