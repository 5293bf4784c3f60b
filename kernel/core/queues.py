"""Calls that wait for one key: classes, fair shares between tenants, deadlines, ageing.

Between classes the order is strict, but every AGED_EVERY-th turn of a port goes to the call that
has waited longest, if that is over the ageing bound. Within a class tenants share by start-time
fair queueing (Goyal, Vin and Cheng, "Start-Time Fair Queueing", SIGCOMM 1996): the tenant with the
smallest start tag is next, and its tag advances by cost / weight. The cost of a call is known only
at its end, so it is charged by the tenant's running mean at dispatch and corrected at the end.
Within a tenant the earliest deadline is first.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos.api.kernel.v1 import port_pb2 as pb

if TYPE_CHECKING:
    from llmos.kernel.core.state import Call

CLASSES = range(pb.CALL_CLASS_SYSTEM, pb.CALL_CLASS_BATCH + 1)  # the best first
AGED_EVERY = 4
_MAX_FLOWS = 1000  # idle tenants remembered per class before those without debt are dropped
_MAX_TIMES = 1000  # methods whose service time is remembered
_tickets = itertools.count(1)
_SLACK = 64  # entries of calls that no longer wait are dropped when they are more, and the most
_FIRST_COST = 0.01  # charged before anything was measured
_GAIN = 1 / 8  # of the running means, as TCP's round-trip estimator (RFC 6298)


@dataclass(slots=True)
class Estimate:
    """Running mean and mean deviation of a measured quantity."""

    count: int = 0
    mean: float = 0.0
    deviation: float = 0.0

    def add(self, value: float) -> None:
        """Take a measurement."""
        if not self.count:
            self.mean, self.deviation = value, value / 2
        else:
            error = value - self.mean
            self.mean += error * _GAIN
            self.deviation += (abs(error) - self.deviation) * _GAIN
        self.count += 1

    def likely(self) -> float:
        """Return what the next value will hardly be above, if values are much alike; else below."""
        if self.count < 8:
            return 0.0
        if self.deviation * 4 < self.mean:
            return self.mean + 2 * self.deviation
        return max(0.0, self.mean - 2 * self.deviation)

    def at_least(self) -> float:
        """Return what the next value will hardly be below."""
        return max(0.0, self.mean - 4 * self.deviation) if self.count >= 8 else 0.0


@dataclass(slots=True, eq=False)
class Flow:
    """One tenant's calls in one class of one queue."""

    owner: ClassQueue
    weight: float
    start: float  # tags
    finish: float
    calls: list[tuple[float, int, Call]] = field(default_factory=list)  # heap: deadline, arrival
    count: int = 0
    cost: Estimate = field(default_factory=Estimate)

    def first(self) -> Call:
        """Return the call with the earliest deadline."""
        while self.calls[0][2].ticket != self.calls[0][1]:  # it waits no longer, or elsewhere
            heapq.heappop(self.calls)
        return self.calls[0][2]


@dataclass(slots=True, eq=False)
class ClassQueue:
    """The tenants of one class."""

    flows: dict[str, Flow] = field(default_factory=dict)
    count: int = 0
    virtual: float = 0.0  # start tag of the last dispatched call
    _heap: list[tuple[float, int, Flow]] = field(default_factory=list)  # old tags are skipped
    _arrivals: deque[tuple[int, Call]] = field(default_factory=deque)
    _seq: int = 0

    def flow(self, call: Call) -> Flow:
        """Return the flow of a call's tenant, with its weight of now."""
        payer, tenant = call.payer, call.tenant
        assert payer is not None
        flow = self.flows.get(tenant)
        if flow is None:
            if len(self.flows) >= _MAX_FLOWS:
                self.flows = {
                    t: f for t, f in self.flows.items() if f.count or f.finish > self.virtual
                }
            flow = self.flows[tenant] = Flow(self, 1.0, self.virtual, self.virtual)
        flow.weight = payer.limits.weight
        return flow

    def push(self, call: Call) -> None:
        """Queue a call; one that was running before goes to the head of its tenant."""
        flow = self.flow(call)
        ticket = call.ticket = next(_tickets)  # entries with another one are of earlier waits
        urgency = -1.0 if call.attempts else math.inf if call.deadline is None else call.deadline
        heapq.heappush(flow.calls, (urgency, ticket, call))
        flow.count += 1
        self.count += 1
        if call.attempts:
            self._arrivals.appendleft((ticket, call))
        else:
            self._arrivals.append((ticket, call))
        if flow.count == 1:
            flow.start = max(self.virtual, flow.finish)
            self._enter(flow)

    def pop(self, call: Call) -> None:
        """Take a call out; entries of it stay until they are come across, but in no empty queue."""
        call.queue, call.ticket = None, 0
        flow = self.flows[call.tenant]
        flow.count -= 1
        self.count -= 1
        if not flow.count:
            flow.calls.clear()
        elif len(flow.calls) > _SLACK + 2 * flow.count:
            flow.calls = [entry for entry in flow.calls if entry[2].ticket == entry[1]]
            heapq.heapify(flow.calls)
        if not self.count:
            self._arrivals.clear()
            self._heap.clear()
        elif len(self._arrivals) > _SLACK + 2 * self.count:
            self._arrivals = deque((t, c) for t, c in self._arrivals if c.ticket == t)

    def _enter(self, flow: Flow) -> None:
        self._seq += 1
        heapq.heappush(self._heap, (flow.start, self._seq, flow))

    def first(self) -> Call:
        """Return the next call in fair order; there must be one."""
        while True:
            tag, _, flow = self._heap[0]
            if flow.count and tag == flow.start:
                return flow.first()
            heapq.heappop(self._heap)

    def oldest(self) -> Call:
        """Return the call that has waited longest; there must be one."""
        while self._arrivals[0][1].ticket != self._arrivals[0][0]:
            self._arrivals.popleft()
        return self._arrivals[0][1]

    def charge(self, flow: Flow) -> float:
        """Charge a tenant for a call that is dispatched; return the cost assumed."""
        cost = flow.cost.mean if flow.cost.count else _FIRST_COST
        if flow.finish > self.virtual:
            self.virtual = flow.finish
        flow.finish = self.virtual + cost / flow.weight
        if flow.count:
            flow.start = flow.finish
            self._enter(flow)
        return cost

    def settle(self, flow: Flow, assumed: float, cost: float) -> None:
        """Correct the charge of a call that has ended."""
        flow.cost.add(cost)
        flow.finish += (cost - assumed) / flow.weight
        if flow.count:
            flow.start = max(flow.finish, self.virtual)
            self._enter(flow)

    def calls(self) -> Iterator[Call]:
        """Yield the waiting calls by arrival."""
        return (call for ticket, call in self._arrivals if call.ticket == ticket)


def _class_queues() -> dict[int, ClassQueue]:
    return {number: ClassQueue() for number in CLASSES}


@dataclass(slots=True, eq=False)
class KeyQueue:
    """Everything that waits for one key of a service."""

    key: str
    classes: dict[int, ClassQueue] = field(default_factory=_class_queues)
    count: int = 0
    fault: Call | None = None  # the fault being handled
    fault_tries: int = 0
    timer_at: float | None = None  # when absence is looked at again
    times: dict[str, Estimate] = field(default_factory=dict)  # service time by method
    served: int = 0  # number of the last dispatch from here
    _pace: Estimate = field(default_factory=Estimate)  # of ends of calls while others wait, in s
    _last_end: float = 0.0

    def push(self, call: Call) -> None:
        """Queue a call."""
        call.queue = self
        self.classes[call.call_class].push(call)
        self.count += 1

    def first(self) -> Call:
        """Return the next call: the best class, in fair order; there must be one."""
        return next(waiting for waiting in self.classes.values() if waiting.count).first()

    def oldest(self) -> Call:
        """Return the call that has waited longest; there must be one."""
        calls = [waiting.oldest() for waiting in self.classes.values() if waiting.count]
        return min(calls, key=lambda call: call.queued_at)

    def take(self, call: Call) -> None:
        """Take a waiting call out, to dispatch it or because it is withdrawn."""
        self.classes[call.call_class].pop(call)
        self.count -= 1

    def raise_class(self, call: Call, call_class: int) -> None:
        """Let a waiting call wait in a better class."""
        self.take(call)
        call.call_class = call_class
        self.push(call)

    def charge(self, call: Call) -> None:
        """Charge the tenant of a call that is being dispatched."""
        waiting = self.classes[call.call_class]
        call.flow = waiting.flow(call)
        call.charged = waiting.charge(call.flow)

    def finished(self, now: float) -> None:
        """Learn how fast calls end while others wait."""
        if self.count and self._last_end:
            self._pace.add(now - self._last_end)
        self._last_end = now if self.count else 0.0

    def wait_s(self, call_class: int) -> float:
        """Return how long a new call of a class is expected to wait; 0 when nothing waits."""
        if self._pace.count < 8:
            return 0.0
        return self._pace.mean * sum(
            waiting.count for number, waiting in self.classes.items() if number <= call_class
        )

    def estimate(self, path: str) -> Estimate:
        """Return the service times of a method."""
        times = self.times.get(path)
        if times is None:
            if len(self.times) >= _MAX_TIMES:
                self.times.clear()
            times = self.times[path] = Estimate()
        return times

    def calls(self) -> list[Call]:
        """Return the waiting calls by class and arrival."""
        return [call for waiting in self.classes.values() for call in waiting.calls()]
