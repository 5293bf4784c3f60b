"""The life of calls: opened, dispatched, answered, cancelled, late, or handed to another server."""

from __future__ import annotations

import copy
import heapq

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.intake import Intake
from llmos.kernel.core.limits import Limits
from llmos.kernel.core.scheduler import Scheduler
from llmos.kernel.core.state import Call, Export, PortState, Service, Stats
from llmos.lib import latency
from llmos.lib.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    LLMOSError,
    ResourceExhausted,
    Unavailable,
)
from llmos.lib.methods import UNKNOWN
from llmos.lib.status import from_wire, make_status

_SAFE_AFTER_DEATH = "Its server died and the call has not been answered; it may be made again."
_MAY_HAVE_RUN = "Its server died; the call may or may not have run, so look before you repeat it."
_MAX_COST = 1e15


class Calls:
    """Owns the call table. The core sets per event: `now`, and `frames` for what leaves."""

    def __init__(self, limits: Limits, stats: Stats) -> None:
        """Start without calls."""
        self.table: dict[int, Call] = {}
        self.scheduler = Scheduler(limits, stats, self._deliver, self.fail)
        self._limits = limits
        self._stats = stats
        self.frames: dict[int, list[pb.Envelope]] = {}
        self._intake = Intake(self.scheduler, limits)
        self._next_server_id = 2
        self._deadlines: list[tuple[float, int]] = []
        self.now = 0.0

    # From the opener.

    def open(self, port: PortState, envelope: pb.Envelope) -> None:
        """Take OPEN. Raises InvalidArgument BAD_FRAME when the port breaks the protocol."""
        now = self.now
        call_id = envelope.call
        if not call_id & 1 or call_id <= port.last_opened:
            raise InvalidArgument("BAD_FRAME", f"OPEN with id {call_id}: ids are odd and grow.")
        port.last_opened = call_id
        scheduler = self.scheduler
        opened = envelope.open
        call = Call(next(scheduler.call_ids), port, call_id, opened.method, now)
        self._stats.opened += 1
        self.table[call.id] = call
        port.opened[call_id] = call
        call.first = envelope
        call.kept_bytes = len(envelope.payload)
        if envelope.cookie:
            call.cookie = envelope.cookie
        try:
            self._intake.describe(call, envelope, opened)
            self._intake.inherit(call, port, opened, now)
            if call.deadline is not None:
                self._remember(call.deadline, call.id)
            payer = call.payer = scheduler.tenant(call.tenant)
            if call.parent is None:
                payer.admit(now)
                call.counted = True
            scheduler.submit(call, now)
        except LLMOSError as err:
            self.fail(call, err)
            scheduler.forget(call.service)

    def _remember(self, deadline: float, call_id: int) -> None:
        heapq.heappush(self._deadlines, (deadline, call_id))
        if len(self._deadlines) > 1000 + 2 * len(self.table):
            self._deadlines = [(d, i) for d, i in self._deadlines if i in self.table]
            heapq.heapify(self._deadlines)

    def described(self, service: Service) -> None:
        """The methods of a service became known: look again at calls that came before that."""
        self._intake.forget()
        if not service.methods:
            return
        early = [c for q in service.queues.values() for c in q.calls() if c.method is UNKNOWN]
        for call in early:
            self.scheduler.withdraw(call)
            try:
                self._intake.describe(call, call.opening(), call.opening().open)
                self.scheduler.submit(call, self.now)
            except LLMOSError as err:
                self.fail(call, err)

    def from_opener(self, call: Call, envelope: pb.Envelope) -> None:
        """Take DATA or WINDOW of the client's side."""
        if envelope.kind == pb.KIND_DATA and (call.replayable or call.export is None):
            if call.more is None:
                call.more = []
            call.more.append(envelope)
            call.kept_bytes += len(envelope.payload)
            if call.kept_bytes > self._limits.max_kept_bytes:
                if call.export is None:
                    what = "Too much was sent before a server took the call."
                    self.fail(call, ResourceExhausted("REQUEST_TOO_LARGE", what))
                    return
                call.replayable = False
                call.first = call.more = None
        if call.export is not None:
            envelope.call = call.server_id
            self.frames[call.export.port.id].append(envelope)

    def cancel(self, call: Call) -> None:
        """The opener gave up, or is gone."""
        self._stop_server(call)
        self._remove(call, 1)

    # From the server.

    def from_server(self, port: PortState, envelope: pb.Envelope) -> None:
        """Take DATA, HEADERS, WINDOW or END of the server's side."""
        call = port.serving.get(envelope.call)
        if call is None:
            if envelope.call >= self._next_server_id:
                raise InvalidArgument("BAD_FRAME", f"Call id {envelope.call} was never given out.")
            return
        kind = envelope.kind
        self.scheduler.progress(port, self.now)
        live = call.server_id == envelope.call
        if kind == pb.KIND_END:
            self._ended(port, call, envelope, live)
        elif live and call.opener is not None:
            if kind == pb.KIND_DATA:
                call.delivered = True
                if envelope.cookie:
                    call.fruitless = 0
                    if type(call.cookie) is bytes:
                        call.cookie = bytearray(call.cookie)
                    call.cookie += envelope.cookie
                    if len(call.cookie) > self._limits.max_cookie_bytes:
                        call.replayable = False
            envelope.call = call.opener_id
            self.frames[call.opener.id].append(envelope)

    def _ended(self, port: PortState, call: Call, envelope: pb.Envelope, live: bool) -> None:
        code, cost, error = 0, 0.0, None
        if envelope.HasField("status"):
            code, cost = envelope.status.code, envelope.status.cost
            if not 0 <= cost <= _MAX_COST:
                raise InvalidArgument("BAD_FRAME", f"{cost} is no cost of a call.")
        del port.serving[envelope.call]
        port.served += 1
        port.failed += bool(code)
        opener = call.opener
        if live:  # else it was cancelled before; only now has the work stopped
            if not code:
                latency.count(port.latency, self.now - call.opened_at)
            self.scheduler.ended(call, cost, self.now)
            if opener is not None:
                envelope.call = call.opener_id
                self.frames[opener.id].append(envelope)
            elif code:
                trailers = [(t.key, t.value) for t in envelope.status.trailers]
                error = from_wire(code, envelope.status.message, trailers)
            self._remove(call, code)
        if opener is not None:
            export = port.exports[call.service.name]
            export.running -= 1
            export.work = max(0.0, export.work - call.expected) if export.running else 0.0
            self.scheduler.credit_returned(export, self.now)
        elif live:  # a fault: outside the credits
            self.scheduler.absence.ended(call, error, self.now)

    # Dispatch.

    def _deliver(self, call: Call, export: Export, now: float) -> None:
        port = export.port
        server_id = self._next_server_id
        self._next_server_id += 2
        call.server_id = server_id
        call.export = export
        port.serving[server_id] = call
        if call.opener is not None:
            export.running += 1
            export.work += call.expected
            call.dispatched_at = now
            if export.running == 1:
                port.last_progress = now
        else:
            self.table[call.id] = call
        if call.attempts:
            # The server tried before may not have been sent these yet: leave that as it was.
            call.first = copy.deepcopy(call.opening())
            call.more = copy.deepcopy(call.more)
        first = call.opening()
        first.call = server_id
        if call.cookie:
            first.cookie = bytes(call.cookie)
        opened = first.open
        opened.tenant = call.tenant
        opened.call_class = call.call_class  # type: ignore[assignment]
        opened.trace = f"{call.id:x}"
        opened.waited_us = max(0, int((now - call.opened_at) * 1e6))
        if call.key:
            opened.key = call.key
        if call.parent is not None:
            opened.parent = 0
        if call.attempts or opened.attempt:
            opened.attempt = call.attempts
        if call.caller:
            opened.caller = call.caller
        opener = call.opener
        if opener is not None and not (opener.own and opened.caller_host):
            opened.caller_host = opener.host
        if call.deadline is not None:
            opened.timeout_us = max(1, int((call.deadline - now) * 1e6))
        out = self.frames[port.id]
        out.append(first)
        for envelope in call.more or ():
            envelope.call = server_id
            out.append(envelope)
        if not call.replayable:
            call.first = call.more = None

    def move_away(self, port: PortState) -> None:
        """`port` hangs: give the calls that it runs and that can be repeated to others."""
        running = [c for i, c in port.serving.items() if c.server_id == i and c.opener is not None]
        for call in reversed(running):
            if self._repeatable(call):
                self._stop_server(call)
                self._again(call)

    def server_died(self, port: PortState) -> None:
        """Give the calls that `port` ran to others, or end them truthfully."""
        calls = [c for i, c in port.serving.items() if c.server_id == i]
        port.serving.clear()
        for call in reversed(calls):  # each goes to the head of its queue: oldest first again
            call.export = None
            call.server_id = 0
            self.scheduler.ended(call, 0.0, self.now, finished=False)
            if call.opener is None:
                self._remove(call, 14)
                self.scheduler.absence.ended(call, None, self.now, died=True)
            elif not self._again(call):
                error = Unavailable("SERVER_DIED", _SAFE_AFTER_DEATH, retry_after_s=0.5)
                if not call.method.idempotent:
                    error = Unavailable("SERVER_DIED_MAY_HAVE_RUN", _MAY_HAVE_RUN)
                self.fail(call, error)

    def _repeatable(self, call: Call) -> bool:
        return (
            call.replayable
            and (not call.delivered or bool(call.cookie))
            and call.fruitless + 1 < self._limits.max_attempts
        )

    def _again(self, call: Call) -> bool:
        if not self._repeatable(call):
            return False
        call.attempts += 1
        call.fruitless += 1
        self._cancel_children(call)
        self._stats.redispatched += 1
        try:
            self.scheduler.submit(call, self.now)
        except LLMOSError as err:
            self.fail(call, err)
        return True

    # Ends.

    def fail(self, call: Call, err: LLMOSError) -> None:
        """End a call with an error of the kernel's."""
        self._stop_server(call)
        opener = call.opener
        if opener is not None:
            end = pb.Envelope(call=call.opener_id, kind=pb.KIND_END, status=make_status(err))
            self.frames[opener.id].append(end)
        self._remove(call, err.code)
        if opener is None:
            self.scheduler.absence.ended(call, err, self.now)

    def _stop_server(self, call: Call) -> None:
        if call.export is not None and call.server_id:
            cancel = pb.Envelope(call=call.server_id, kind=pb.KIND_CANCEL)
            self.frames[call.export.port.id].append(cancel)
            call.server_id = 0  # what the server still says is not passed on
            call.export = None
            self.scheduler.ended(call, 0.0, self.now, finished=False)
        else:
            self.scheduler.withdraw(call)

    def _remove(self, call: Call, code: int) -> None:
        if self.table.pop(call.id, None) is None:
            return
        if call.opener is not None:
            call.opener.opened.pop(call.opener_id, None)
            self._stats.ended[code] = self._stats.ended.get(code, 0) + 1
        if call.counted and call.payer is not None:
            call.payer.open -= 1
            call.counted = False
        call.first = call.more = None
        if call.parent is not None and call.parent.children is not None:
            call.parent.children.pop(call, None)
        self._cancel_children(call)

    def _cancel_children(self, call: Call) -> None:
        if call.children:
            gone = Cancelled("PARENT_ENDED", "The call that this one was made for has ended.")
            for child in list(call.children):
                self.fail(child, gone)

    def next_deadline(self) -> float | None:
        """Return when `expire` has something to do."""
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self) -> None:
        """End calls whose deadline has passed, and stop their work."""
        while self._deadlines and self._deadlines[0][0] <= self.now:
            call = self.table.get(heapq.heappop(self._deadlines)[1])
            if call is not None:
                where = "ran" if call.export is not None else "waited for a server"
                self.fail(
                    call, DeadlineExceeded("DEADLINE", f"The deadline passed while it {where}.")
                )
