"""The kernel's state machine: `handle(event, now) -> actions`.

It has no clock (`now` is what the caller says, in seconds, and never goes back) and does no I/O, so
it runs the same under the real transport, a virtual clock, and when a recording is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

from llmos.api.kernel.v1 import admin_pb2
from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.calls import Calls
from llmos.kernel.core.events import (
    Actions,
    Attached,
    CancelRequested,
    Detached,
    DrainRequested,
    Event,
    LimitsChanged,
    PortChange,
    Received,
    Tick,
)
from llmos.kernel.core.limits import Limits, apply
from llmos.kernel.core.state import Export, Identity, PortState, Stats
from llmos.lib import methods
from llmos.lib.errors import Cancelled, FailedPrecondition, InvalidArgument, LLMOSError
from llmos.lib.status import make_status
from llmos.lib.values import like

PROTOCOL = 1
WatchEvent = admin_pb2.WatchPortsResponse.Event


Admit = Callable[[pb.Hello], Identity]  # who attaches; raises Unauthenticated BAD_CREDENTIAL


def _single_user(hello: pb.Hello) -> Identity:
    # Everybody who reaches the socket is the one user, as the directory's mode guards it, and may
    # act for tenants of its own making.
    return Identity(delegates=True)


class Core:
    """All state of one kernel life. Nothing in it is durable."""

    def __init__(
        self, kernel: str, host: str, limits: Limits | None = None, admit: Admit = _single_user
    ) -> None:
        """Start empty. kernel: random id of this life; host: identity of this host."""
        self.kernel = kernel
        self.host = host
        self.limits = limits or Limits()
        self._admit = admit
        self.stats = Stats()
        self.ports: dict[int, PortState] = {}
        self._actions = Actions()
        self.calls = Calls(self.limits, self.stats)
        self.scheduler = self.calls.scheduler
        self._watched: dict[Export, None] = {}  # exports with a stall time, in order
        self._stall_check: float | None = None
        self.files_changed = False  # descriptors were added since the transport last looked
        self._port_level: dict[int, Callable[[PortState, pb.Envelope, float], None]] = {
            pb.KIND_EXPORT: self._export,
            pb.KIND_CREDIT: self._credit,
            pb.KIND_DRAIN: self._drain,
            pb.KIND_ALIVE: self._alive,
        }

    def handle(self, event: Event, now: float) -> Actions:
        """Take one event; return what is to be done about it."""
        actions = self._actions = Actions()
        self.calls.frames, self.calls.now = actions.frames, now
        if self.scheduler.started is None:
            self.scheduler.started = now
        if type(event) is Received:
            if (port := self.ports.get(event.port)) is not None:
                self._received(port, event.envelopes, now)
        elif type(event) is Attached:
            self.ports[event.port] = PortState(event.port, now, event.own, now)
        elif type(event) is Detached:
            self._detached(event.port, now)
        elif type(event) is CancelRequested:
            if (call := self.calls.table.get(event.call)) is not None:
                gone = Cancelled("CANCELLED_BY_OPERATOR", "An operator cancelled the call.")
                self.calls.fail(call, gone)
        elif type(event) is DrainRequested:
            if (port := self.ports.get(event.port)) is not None:
                self._drained(port, now)
        elif type(event) is LimitsChanged:
            apply(event.request.limits, self.limits)
            for change in event.request.tenants:
                apply(change, self.scheduler.tenant(change.tenant).limits)
        elif type(event) is Tick:
            self.calls.expire()
            self.scheduler.absence.expire(now)
            self._check_stalls(now)
        times = (self.calls.next_deadline(), self.scheduler.absence.next_timer(), self._stall_check)
        actions.wake = min((t for t in times if t is not None), default=None)
        return actions

    def _check_stalls(self, now: float) -> None:
        planned = self._stall_check
        if planned is None or now < planned:
            return
        self._watched = {e: None for e in self._watched if e.stall_s and e.port.id in self.ports}
        shortest = min((e.stall_s for e in self._watched), default=None)
        self._stall_check = None if shortest is None else now + shortest / 4
        if shortest is not None and now - planned > shortest / 4:
            # The kernel itself was held up: that time counts for nobody, and what came is unread.
            for port in {e.port.id: e.port for e in self._watched}.values():
                port.last_progress = min(now, port.last_progress + now - planned)
            return
        for export in list(self._watched):
            port = export.port
            if export.late(now) and not port.stalled:
                if export.waits():
                    port.last_progress = now
                    continue
                port.stalled = True
                self.calls.move_away(port)
                self.scheduler.port_changed(port, now)
                self._changed(port, WatchEvent.EVENT_STALLED)

    def _received(self, port: PortState, envelopes: Sequence[pb.Envelope], now: float) -> None:
        stats = self.stats
        stats.frames += 1
        stats.envelopes += len(envelopes)
        try:
            for envelope in envelopes:
                self._take(port, envelope, now)
        except LLMOSError as err:
            self._disconnect(port, err, now)

    def _take(self, port: PortState, envelope: pb.Envelope, now: float) -> None:
        kind = envelope.kind
        if port.hello is None:
            self._hello(port, envelope, now)
        elif kind == pb.KIND_OPEN:
            self.calls.open(port, envelope)
        elif kind in _ABOUT_CALLS:
            call_id = envelope.call
            if not call_id & 1:
                if kind == pb.KIND_CANCEL:
                    raise InvalidArgument("BAD_FRAME", "CANCEL of a call that the port serves.")
                self.calls.from_server(port, envelope)
            elif (call := port.opened.get(call_id)) is not None:
                if kind == pb.KIND_CANCEL:
                    self.calls.cancel(call)
                elif kind in (pb.KIND_DATA, pb.KIND_WINDOW):
                    self.calls.from_opener(call, envelope)
                else:
                    raise InvalidArgument("BAD_FRAME", "END or HEADERS of a call it opened.")
            elif call_id > port.last_opened:
                raise InvalidArgument("BAD_FRAME", f"Call id {call_id} was never opened.")
        elif (handler := self._port_level.get(kind)) is not None:
            handler(port, envelope, now)
        else:
            raise InvalidArgument("BAD_FRAME", f"A port does not send envelopes of kind {kind}.")

    # Ports.

    def _hello(self, port: PortState, envelope: pb.Envelope, now: float) -> None:
        hello = envelope.hello
        if envelope.kind != pb.KIND_HELLO:
            raise InvalidArgument("BAD_FRAME", "The first envelope of a port must be HELLO.")
        if hello.protocol != PROTOCOL:
            text = f"This kernel speaks port protocol {PROTOCOL}, not {hello.protocol}; "
            text += "use the llmos version of the kernel."
            raise FailedPrecondition("PROTOCOL_VERSION", text)
        if not hello.name or len(hello.name) > 256 or not 8 <= len(hello.instance) <= 64:
            raise InvalidArgument("BAD_FRAME", "HELLO needs a name and an instance id.")
        port.identity = self._admit(hello)
        port.hello = hello
        port.name, port.instance, port.host = hello.name, hello.instance, hello.host
        for old in [p for p in self.ports.values() if p.instance == port.instance and p != port]:
            # The process came back before its old stream was seen to end.
            self._disconnect(old, Cancelled("REPLACED", "The process attached again."), now)
        # The limits are those of frame and window.
        welcome = like(pb.Welcome, self.limits, port=port.id, kernel=self.kernel, host=self.host)
        self._send(port, pb.Envelope(kind=pb.KIND_WELCOME, welcome=welcome))
        self._changed(port, WatchEvent.EVENT_ATTACHED)

    def _disconnect(self, port: PortState, err: LLMOSError, now: float) -> None:
        self._actions.close.append((port.id, err))
        self._detached(port.id, now)

    def _detached(self, port_id: int, now: float) -> None:
        port = self.ports.pop(port_id, None)
        if port is None:
            return
        for call in list(port.opened.values()):
            self.calls.cancel(call)
        for export in port.exports.values():
            keys, export.keys = export.keys, ()
            self.scheduler.export_changed(export, keys, now)
        self.calls.server_died(port)
        self._actions.frames.pop(port_id, None)
        port.exports.clear()  # they lead back to it, which is to go now
        if port.hello is not None:
            self._changed(port, WatchEvent.EVENT_DETACHED)

    def _send(self, port: PortState, envelope: pb.Envelope) -> None:
        self._actions.frames[port.id].append(envelope)

    def _drained(self, port: PortState, now: float) -> None:
        port.draining = True
        self.scheduler.port_changed(port, now)

    def _changed(self, port: PortState, what: int) -> None:
        self._actions.changes.append(PortChange(what, port))

    # Envelopes about the port.

    def _export(self, port: PortState, envelope: pb.Envelope, now: float) -> None:
        answer = pb.Envelope(call=envelope.call, kind=pb.KIND_EXPORTED)
        try:
            export, old_keys = self._declare(port, envelope.export)
        except LLMOSError as err:
            answer.status.CopyFrom(make_status(err))
            self._send(port, answer)
            return
        self._send(port, answer)
        service = self.scheduler.service(export.service)
        service.seen = service.seen or bool(export.keys)
        self.calls.described(service)
        if export.stall_s:
            self._watched[export] = None
            check = now + export.stall_s / 4
            self._stall_check = min(check, self._stall_check or check)
        self.scheduler.export_changed(export, old_keys, now)
        self._changed(port, WatchEvent.EVENT_EXPORTED)

    def _declare(self, port: PortState, declared: pb.Export) -> tuple[Export, tuple[str, ...]]:
        name = declared.service
        limits = self.limits
        if not name or len(name) > 256 or len(declared.keys) > limits.max_keys:
            raise InvalidArgument("BAD_EXPORT", "An export needs a service name and sane keys.")
        if name not in port.exports and len(port.exports) >= limits.max_exports:
            raise InvalidArgument("BAD_EXPORT", f"At most {limits.max_exports} services a port.")
        services = self.scheduler.services
        if name not in services and len(services) >= limits.max_services:
            raise InvalidArgument("BAD_EXPORT", f"At most {limits.max_services} services in all.")
        if declared.files:
            self._describe(name, tuple(declared.files))
        export = port.exports.get(name)
        if export is None:
            export = port.exports[name] = Export(port, name)
        old_keys = export.keys
        export.declare(declared)
        return export, old_keys

    def _describe(self, name: str, files: tuple[bytes, ...]) -> None:
        known = self.scheduler.services.get(name)
        if known is not None and known.files == files:
            return
        try:
            parsed = [descriptor_pb2.FileDescriptorProto.FromString(f) for f in files]
        except DecodeError:
            raise InvalidArgument("BAD_EXPORT", f"Descriptors of {name} do not parse.") from None
        service = self.scheduler.service(name)
        for file in parsed:
            for found, listed in methods.of_file(file):
                if found == name:
                    service.methods = {m.path: m for m in listed}
        service.files = files
        self.files_changed = True

    def _credit(self, port: PortState, envelope: pb.Envelope, now: float) -> None:
        export = port.exports.get(envelope.credit.service)
        if export is None:
            raise InvalidArgument("BAD_FRAME", "CREDIT for a service that is not exported.")
        export.credits = envelope.credit.credits
        self.scheduler.credit_returned(export, now)

    def _drain(self, port: PortState, envelope: pb.Envelope, now: float) -> None:
        self._send(port, pb.Envelope(kind=pb.KIND_DRAIN))
        self._drained(port, now)

    def _alive(self, port: PortState, envelope: pb.Envelope, now: float) -> None:
        self.scheduler.progress(port, now)


_ABOUT_CALLS = frozenset(
    (pb.KIND_DATA, pb.KIND_END, pb.KIND_CANCEL, pb.KIND_WINDOW, pb.KIND_HEADERS)
)
