"""Drives the kernel's pure core with simulated ports and a virtual clock."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.api.kernel.v1 import admin_pb2_grpc  # noqa: F401  (registers Pager in the pool)
from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.api.memory.v1 import buffers_pb2, buffers_pb2_grpc  # noqa: F401
from llmos.kernel.core.core import Core
from llmos.kernel.core.events import Actions, Attached, Detached, Event, Received, Tick
from llmos.kernel.core.limits import Limits
from llmos.lib import methods
from llmos.lib.errors import LLMOSError
from llmos.lib.status import from_wire

EXECUTION = "llmos.api.execution.v1.Execution"
GENERATE = f"/{EXECUTION}/Generate"
LOAD = f"/{EXECUTION}/LoadModel"
BUFFERS = "llmos.api.memory.v1.Buffers"
CREATE = f"/{BUFFERS}/CreateBuffer"

UNARY = pb.FLAG_MESSAGE | pb.FLAG_HALF_CLOSE


class Sim:
    """One core, its clock, and what it sent to each port."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.core = Core("k", "host", limits)
        self.now = 1000.0
        self.sent: dict[int, list[pb.Envelope]] = {}
        self.last: dict[int, list[pb.Envelope]] = {}  # what the last event sent, not copied
        self.wake: float | None = None
        self.closed: dict[int, LLMOSError] = {}
        self._ports = 0
        self._wake: float | None = None

    def feed(self, event: Event) -> Actions:
        actions = self.core.handle(event, self.now)
        self.last, self.wake = actions.frames, actions.wake
        self._wake = actions.wake
        for port, envelopes in actions.frames.items():
            copies = [pb.Envelope.FromString(e.SerializeToString()) for e in envelopes]
            self.sent.setdefault(port, []).extend(copies)
        self.closed.update(dict(actions.close))
        return actions

    def advance(self, seconds: float) -> None:
        """Let time pass; the core is woken whenever it asked for it."""
        end = self.now + seconds
        while self._wake is not None and self._wake < end:
            self.now = max(self.now, self._wake)
            self.feed(Tick())
        self.jump(end - self.now)

    def jump(self, seconds: float) -> None:
        """Let time pass while the kernel does not run."""
        self.now += seconds
        self.feed(Tick())

    def attach(
        self, name: str, host: str = "host", own: bool = False, credential: bytes = b""
    ) -> Peer:
        self._ports += 1
        self.feed(Attached(self._ports, own))
        peer = Peer(self, self._ports, name)
        instance = f"instance-{self._ports}"
        hello = pb.Hello(protocol=1, name=name, instance=instance, host=host, credential=credential)
        peer.send(pb.Envelope(kind=pb.KIND_HELLO, hello=hello))
        assert peer.take()[0].kind == pb.KIND_WELCOME
        return peer


class Peer:
    """One simulated port."""

    def __init__(self, sim: Sim, port: int, name: str) -> None:
        self.sim = sim
        self.port = port
        self.name = name
        self.next_call = 1

    def send(self, *envelopes: pb.Envelope) -> None:
        self.sim.feed(Received(self.port, envelopes))

    def take(self) -> list[pb.Envelope]:
        return self.sim.sent.pop(self.port, [])

    def one(self) -> pb.Envelope:
        envelopes = self.take()
        assert len(envelopes) == 1, envelopes
        return envelopes[0]

    def error(self) -> tuple[int, str]:
        """Take one END; return its code and reason."""
        end = self.one()
        assert end.kind == pb.KIND_END
        pairs = [(t.key, t.value) for t in end.status.trailers]
        return end.status.code, from_wire(end.status.code, end.status.message, pairs).reason

    def die(self) -> None:
        self.sim.feed(Detached(self.port))
        self.sim.sent.pop(self.port, None)

    def export(
        self,
        service: str,
        keys: tuple[str, ...] = ("",),
        credits: int = 0,
        fault_handler: bool = False,
        stall_ms: int = 0,
        files: Sequence[bytes] | None = None,
    ) -> None:
        export = pb.Export(
            service=service,
            keys=keys,
            credits=credits,
            fault_handler=fault_handler,
            stall_ms=stall_ms,
            files=methods.files_of(service) if files is None else files,
        )
        self.send(pb.Envelope(call=7, kind=pb.KIND_EXPORT, export=export))

    def open(
        self,
        method: str = CREATE,
        payload: bytes = b"",
        flags: int = UNARY,
        call_class: int = 0,
        timeout_s: float = 0,
        parent: int = 0,
        key: str = "",
    ) -> int:
        call = self.next_call
        self.next_call += 2
        opened = pb.Open(
            method=method,
            call_class=call_class,  # type: ignore[arg-type]
            timeout_us=int(timeout_s * 1e6),
            parent=parent,
            key=key,
        )
        self.send(
            pb.Envelope(call=call, kind=pb.KIND_OPEN, payload=payload, flags=flags, open=opened)
        )
        return call

    def cancel(self, call: int) -> None:
        self.send(pb.Envelope(call=call, kind=pb.KIND_CANCEL))

    def data(self, call: int, payload: bytes = b"", cookie: bytes = b"", flags: int = 1) -> None:
        self.send(
            pb.Envelope(call=call, kind=pb.KIND_DATA, payload=payload, cookie=cookie, flags=flags)
        )

    def end(self, call: int, payload: bytes = b"ok", code: int = 0) -> None:
        status = pb.Status(code=code, message="m") if code else None
        flags = 0 if code else pb.FLAG_MESSAGE
        self.send(
            pb.Envelope(call=call, kind=pb.KIND_END, payload=payload, flags=flags, status=status)
        )
