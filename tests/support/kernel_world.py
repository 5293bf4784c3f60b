"""A virtual world around the kernel's pure core: a clock, an agenda, and processes that attach.

Everything is decided by one seeded random generator, so a run can be repeated exactly. What the
processes see from the outside (answers, duplicates, order, credits) is judged as it happens; what
is inside the core is judged by `kernel_invariants` now and then and at the end.
"""

from __future__ import annotations

import heapq
import math
import random
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2
from kernel_invariants import expect

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.core import Core
from llmos.kernel.core.events import Attached, Detached, Event, Received, Tick
from llmos.kernel.core.limits import Limits
from llmos.kernel.core.state import Identity
from llmos.lib.errors import LLMOSError, Unauthenticated

UID = struct.Struct("<QI")  # number of the call in this world, number of the message
T = TypeVar("T")
SERVICES = ("sim.A", "sim.B", "sim.C", "sim.Echo", "sim.Model", "sim.Flaky")
_SAFE = descriptor_pb2.MethodOptions.IDEMPOTENT


def descriptors() -> list[bytes]:
    """Return the file that declares the simulated services; they all have the same methods."""
    file = descriptor_pb2.FileDescriptorProto(name="sim.proto", package="sim")
    for name in SERVICES:
        service = file.service.add(name=name.removeprefix("sim."))
        for method in ("Idem", "Stream", "Resume", "Collect"):
            service.method.add(name=method).options.idempotency_level = _SAFE
        service.method.add(name="Once")
    return [file.SerializeToString()]


FILES = descriptors()


def tenancy(hello: pb.Hello) -> Identity:
    """Take the credential for the tenant's name; `name!` may not do better than NORMAL."""
    if hello.credential == b"bad":
        raise Unauthenticated("BAD_CREDENTIAL", "The credential is not accepted.")
    name = hello.credential.decode() or "local"
    best = pb.CALL_CLASS_NORMAL if name.endswith("!") else pb.CALL_CLASS_SYSTEM
    return Identity(name, best)


class World:
    """The clock, the agenda, and all processes."""

    def __init__(self, seed: int, limits: Limits | None = None, start: float = 1000.0) -> None:
        self.random = random.Random(seed)
        self.core = Core("sim", "host", limits, tenancy)
        self.now = start
        self.events = 0  # handled by the core
        self.envelopes = 0
        self.single = True  # the event being handled has at most one envelope
        self.processes: dict[int, Process] = {}
        self.executions: Counter[int] = Counter()  # OPENs that servers saw, by uid
        self.outcomes: Counter[str] = Counter()
        self.sizes: dict[int, float] = {}  # seconds that calls take, where their clients say
        self.births: dict[int, tuple[str, float | None]] = {}  # of nested calls
        self.judge: Callable[[], None] | None = None
        self.judge_every = 1000
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._seq = 0
        self._tick_at = math.inf
        self._ticks_now = 0
        self._ports = 0
        self._uids = 0

    def uid(self) -> int:
        self._uids += 1
        return self._uids

    def pick(self, things: Sequence[T]) -> T:
        """Return one of some things."""
        return things[int(self.random.random() * len(things))]

    def at(self, delay: float, act: Callable[..., None], *args: Any) -> None:
        """Do something later."""
        self._seq += 1
        heapq.heappush(self._agenda, (self.now + delay, self._seq, act, args))

    def run(self, seconds: float = math.inf, events: float = math.inf) -> None:
        """Let time pass until it has, or until the core has handled so many events."""
        until = self.now + seconds
        agenda = self._agenda
        while agenda and agenda[0][0] <= until and self.events < events:
            when, _, act, args = heapq.heappop(agenda)
            if when > self.now:
                self.now = when
                self._ticks_now = 0
            act(*args)
        if self.events < events and seconds < math.inf:
            self.now = until

    def feed(self, event: Event) -> None:
        """Let the core handle an event, and carry out what it says."""
        self.events += 1
        actions = self.core.handle(event, self.now)
        for port, envelopes in actions.frames.items():
            process = self.processes.get(port)
            if process is not None:
                for envelope in envelopes:
                    self.carried(port, envelope)
                    process.take(envelope)
        for port, err in actions.close:
            process = self.processes.pop(port, None)
            if process is not None:
                process.closed(port, err)
        wake = actions.wake
        if wake is not None and wake < self._tick_at:
            self._tick_at = max(wake, self.now)
            self.at(self._tick_at - self.now, self._tick, self._tick_at)
        if self.judge is not None and self.events % self.judge_every == 0:
            self.judge()

    def carried(self, port: int, envelope: pb.Envelope) -> None:
        """For tests: an envelope reaches a port."""

    def _tick(self, when: float) -> None:
        if when == self._tick_at:
            self._tick_at = math.inf
            self._ticks_now += 1
            expect("timers make progress", self._ticks_now < 100, f"at {self.now}")
            self.feed(Tick())

    def attach(self, process: Process) -> int:
        """Open a stream; return its port."""
        self._ports += 1
        self.processes[self._ports] = process
        self.feed(Attached(self._ports))
        return self._ports

    def detach(self, port: int) -> None:
        """A stream breaks."""
        if self.processes.pop(port, None) is not None:
            self.feed(Detached(port))


class Process:
    """What all processes have: a port whose envelopes arrive in order, a little later."""

    def __init__(self, world: World, name: str, tenant: str = "") -> None:
        self.world = world
        self.name = name
        self.tenant = tenant
        self.instance = f"{name}-{world.uid():08}"
        self.latency = world.pick((0.0, 0.0002, 0.001))
        self.port = 0
        self.alive = False
        self._out: list[pb.Envelope] = []

    def attach(self) -> None:
        """Attach (again); what was on its way over an old stream is lost."""
        self._out = []
        self.port = self.world.attach(self)
        self.alive = True
        hello = pb.Hello(
            protocol=1,
            name=self.name,
            instance=self.instance,
            host="host",
            credential=self.tenant.encode(),
        )
        self.world.feed(Received(self.port, [pb.Envelope(kind=pb.KIND_HELLO, hello=hello)]))

    def send(self, envelope: pb.Envelope) -> None:
        """Send with this process's latency; what is sent meanwhile shares the frame."""
        if not self._out:
            self.world.at(self.latency, self._arrive, self.port, self._out)
        self._out.append(envelope)

    def _arrive(self, port: int, frame: list[pb.Envelope]) -> None:
        if not self.alive or port != self.port:
            return
        if frame is self._out:
            self._out = []
        self.world.envelopes += len(frame)
        self.world.single = len(frame) == 1
        self.world.feed(Received(port, frame))
        self.world.single = True
        self.arrived()

    def arrived(self) -> None:
        """The kernel has seen everything that was sent."""

    def take(self, envelope: pb.Envelope) -> None:
        """Take an envelope from the kernel. Must not keep it, nor feed the core."""
        raise NotImplementedError

    def die(self) -> None:
        """As `kill -9`."""
        if self.alive:
            self.alive = False
            self.world.detach(self.port)

    def closed(self, port: int, err: LLMOSError) -> None:
        """The kernel ended a stream."""
        replaced = err.reason == "REPLACED" and port != self.port
        expect("only offenders are disconnected", replaced, f"{self.name}: {err.reason}: {err}")
