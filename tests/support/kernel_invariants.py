"""The kernel's invariants, each with its name, checked on the inside of the pure core.

docs/kernel-proof.md says which test checks which. They only read.
"""

from __future__ import annotations

import gc
from collections import Counter
from typing import Protocol

from llmos.kernel.core.core import Core
from llmos.kernel.core.queues import KeyQueue
from llmos.kernel.core.state import Call, Export, PortState, Service


class Violation(AssertionError):
    """An invariant does not hold."""


class Judged(Protocol):
    """What `judge_dispatch` needs of a world."""

    core: Core
    now: float
    single: bool


def expect(invariant: str, holds: bool, detail: object = "") -> None:
    """Raise Violation unless an invariant holds."""
    if not holds:
        raise Violation(f"{invariant}: {detail}")


def check(core: Core, now: float) -> None:
    """Check everything that holds between any two events."""
    check_credits(core)
    check_every_call_is_somewhere(core)
    check_counts(core)
    check_only_attached_ports(core)
    check_nothing_waits_that_could_run(core, now)
    check_deadlines(core, now)
    check_children(core)
    check_bounded_memory(core)


def check_credits(core: Core) -> None:
    """Credits are never negative and never leaked: what runs is what was given out and not ended.

    Cancelled calls hold their credit until the server has stopped the work.
    """
    for port in core.ports.values():
        used = Counter(c.service.name for c in port.serving.values() if c.opener and c.service)
        for name, export in port.exports.items():
            expect("no credit is leaked", export.running == used[name], (port.name, name))
            expect("work is not negative", export.work >= 0, (port.name, name, export.work))
        expect("only exported services run", set(used) <= set(port.exports), port.name)


def check_every_call_is_somewhere(core: Core) -> None:
    """No call is lost: each waits in exactly one queue, or is with exactly one live server."""
    waiting = Counter(call.id for _, queue in _queues(core) for call in queue.calls())
    expect("no call waits twice", all(n == 1 for n in waiting.values()), waiting)
    for call in core.calls.table.values():
        runs = call.export is not None and call.server_id != 0
        place = (call.id in waiting) + runs
        expect("no call is lost", place == 1, f"call {call.id:x} {call.path} is at {place} places")
        if runs and call.export is not None:
            port = call.export.port
            held = core.ports.get(port.id) is port and port.serving.get(call.server_id) is call
            expect("its server knows a running call", held, f"call {call.id:x}")
        if call.opener is not None:
            known = call.opener.opened.get(call.opener_id) is call
            expect("its opener knows a call", known, f"call {call.id:x}")
    expect("only live calls wait", set(waiting) <= set(core.calls.table), "a removed call waits")


def check_counts(core: Core) -> None:
    """The counters agree with what they count."""
    total = 0
    for service, queue in _queues(core):
        calls = queue.calls()
        total += len(calls)
        expect("queue counts hold", queue.count == len(calls), (service.name, queue.key))
        for call_class, waiting in queue.classes.items():
            of_class = [c for c in calls if c.call_class == call_class]
            expect("class counts hold", waiting.count == len(of_class), (service.name, queue.key))
            flows = Counter(c.tenant for c in of_class)
            for tenant, flow in waiting.flows.items():
                expect("flow counts hold", flow.count == flows[tenant], (service.name, tenant))
        known = service.waiting.get(queue.key) is queue
        expect("waiting queues are known", known == (queue.count > 0), (service.name, queue.key))
        fault = queue.fault
        if fault is not None:
            expect("a fault in progress is with a handler", fault.id in core.calls.table, fault.id)
    expect("the kernel's queue count holds", core.scheduler.queued == total, total)
    counted = Counter(c.payer.name for c in core.calls.table.values() if c.counted and c.payer)
    for name, payer in core.scheduler.tenants.items():
        expect("tenants' counts hold", payer.open == counted[name], name)
    stats = core.stats
    open_ = sum(c.opener is not None for c in core.calls.table.values())
    ended = sum(stats.ended.values())
    expect("what was opened is open or ended", stats.opened == ended + open_, stats)


def check_only_attached_ports(core: Core) -> None:
    """After a port dies nothing of it is left in any table."""
    live = set(map(id, core.ports.values()))
    for service in core.scheduler.services.values():
        exports = [*service.exports.values(), *(e for hot in service.hot.values() for e in hot)]
        gone = [e.port.name for e in exports if id(e.port) not in live]
        expect("no dead port is in the name service", not gone, (service.name, gone))
        for key, hot in service.hot.items():
            expect("hot keys are exported", all(key in e.keys for e in hot), (service.name, key))
            expect("no export is hot twice", len(set(map(id, hot))) == len(hot) > 0, key)
    for call in core.calls.table.values():
        opener, export = call.opener, call.export
        alive = opener is None or id(opener) in live
        expect("no dead port has calls", alive, f"call {call.id:x} of {call.caller}")
        served = export is None or id(export.port) in live
        expect("no dead port serves", served, f"call {call.id:x}")


def check_nothing_waits_that_could_run(core: Core, now: float) -> None:
    """No call waits while a port that serves its key would take it."""
    for service, queue in _queues(core):
        if not queue.count:
            continue
        call = queue.first()
        idle = [e for e in service.hot.get(queue.key, []) if _takes(e, call.call_class)]
        expect("no call waits that could run", not idle, f"call {call.id:x} {call.path}")
        absent = all(e.port.draining or e.port.stalled for e in service.hot.get(queue.key, []))
        if absent:
            watched = queue.fault is not None or queue.timer_at is not None
            expect("no call waits for ever for an absent server", watched, f"call {call.id:x}")


def check_deadlines(core: Core, now: float) -> None:
    """No call is open past its deadline (by more than the tick that is due now)."""
    for call in core.calls.table.values():
        late = call.deadline is not None and now > call.deadline
        expect("no call is open past its deadline", not late, f"call {call.id:x}")


def check_children(core: Core) -> None:
    """A nested call ends with its parent, is billed to the same tenant, and is due no later."""
    for call in core.calls.table.values():
        parent = call.parent
        if parent is None:
            continue
        alive = core.calls.table.get(parent.id) is parent and call in (parent.children or ())
        expect("a nested call ends with its parent", alive, f"call {call.id:x}")
        expect("a child is its root tenant's", call.tenant == parent.tenant, call.id)
        if parent.deadline is not None:
            early = call.deadline is not None and call.deadline <= parent.deadline
            expect("a child's deadline is no later", early, call.id)


def check_bounded_memory(core: Core) -> None:
    """What is kept besides the calls themselves is bounded by their number."""
    running = sum(len(port.serving) for port in core.ports.values())
    deadlines = len(core.calls._deadlines)
    bound = 1001 + 2 * (core.limits.max_queued + running)
    expect("deadlines are forgotten", deadlines <= bound, deadlines)
    for service in core.scheduler.services.values():
        expect("what nobody serves is forgotten", bool(service.seen or service.queues), service)
    for service, queue in _queues(core):
        for waiting in queue.classes.values():
            kept = len(waiting._arrivals)
            bound = 65 + 2 * (waiting.count + 1)
            expect("arrivals are forgotten", kept <= bound, (service.name, kept))
            for flow in waiting.flows.values():
                kept = len(flow.calls)
                bound = 65 + 2 * (flow.count + 1)
                expect("taken calls are forgotten", kept <= bound, (service.name, kept))


def check_empty(core: Core) -> None:
    """When everything has ended, nothing of any call is left."""
    expect("no call is left", not core.calls.table, len(core.calls.table))
    expect("no call is queued", core.scheduler.queued == 0, core.scheduler.queued)
    for port in core.ports.values():
        expect("no port has calls", not port.opened and not port.serving, port.name)
        for export in port.exports.values():
            expect("all credits are back", export.running == 0, (port.name, export.service))
            expect("no work is left", export.work == 0, (port.name, export.work))
    for service, queue in _queues(core):
        expect("all queues are empty", not queue.count and queue.fault is None, service.name)
    for tenant in core.scheduler.tenants.values():
        expect("no tenant has calls", tenant.open == 0, tenant.name)


def reachable() -> tuple[int, int]:
    """Return how many calls and ports there are in this process's memory."""
    gc.collect()
    kinds = Counter(type(thing) for thing in gc.get_objects())
    return kinds[Call], kinds[PortState]


def check_garbage(core: Core, before: tuple[int, int]) -> None:
    """No object of an ended call or of a dead port is left. before: what other cores have."""
    calls, ports = reachable()
    expect("ended calls are garbage", calls == before[0] + len(core.calls.table), calls)
    expect("dead ports are garbage", ports == before[1] + len(core.ports), ports)


def judge_dispatch(world: Judged, port: int, server_id: int) -> None:
    """Per-class order: a call is not dispatched past one of a better class that could have been.

    Ageing aside: a call that has waited over the ageing bound may pass better ones. Only frames
    of one envelope are judged, because another envelope may have opened or raised the other call
    after this one left.
    """
    state = world.core.ports.get(port)
    call = state.serving.get(server_id) if state is not None else None
    if state is None or call is None or call.service is None or not world.single:
        return
    waiting = call.service.waiting
    now = world.now
    if not waiting or now - call.queued_at >= world.core.limits.ageing_s:
        return
    for key in state.exports[call.service.name].keys:
        queue = waiting.get(key)
        if queue is None:
            continue
        for better in range(1, call.call_class):
            if queue.classes[better].count and (passed := _earlier(queue, better, now)):
                text = (
                    f"{call.path} {call.key!r} {call.id:x} (class {call.call_class}) passed "
                    f"{passed.path} {passed.key!r} {passed.id:x} ({better}) on {state.name}"
                )
                expect("a better class goes first", False, text)


def _earlier(queue: KeyQueue, call_class: int, now: float) -> Call | None:
    return next((c for c in queue.classes[call_class].calls() if c.queued_at < now), None)


def _queues(core: Core) -> list[tuple[Service, KeyQueue]]:
    return [(s, q) for s in core.scheduler.services.values() for q in s.queues.values()]


def _takes(export: Export, call_class: int) -> bool:
    return export.admits(call_class) and not export.port.draining and not export.port.stalled
