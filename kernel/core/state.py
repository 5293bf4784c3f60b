"""The tables of the kernel: ports, their exports, services with their queues, and calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.queues import Flow, KeyQueue
from llmos.kernel.core.tenants import Tenant
from llmos.lib.methods import UNKNOWN, Method


@dataclass(frozen=True)
class Identity:
    """What a credential stands for."""

    tenant: str = "local"
    best_class: int = pb.CALL_CLASS_SYSTEM  # the highest class that its calls may have
    delegates: bool = False  # it may name the tenant of its calls, as a gateway does


@dataclass(slots=True, eq=False)
class PortState:
    """One attached process; without `hello` until it has said it."""

    id: int
    attached_at: float
    own: bool
    last_progress: float
    hello: pb.Hello | None = None
    name: str = ""  # of `hello`, as the next: a field of a message is made anew at every look at it
    instance: str = ""
    host: str = ""
    identity: Identity = Identity()
    exports: dict[str, Export] = field(default_factory=dict)
    opened: dict[int, Call] = field(default_factory=dict)  # by the port's own id
    serving: dict[int, Call] = field(default_factory=dict)  # by the id given to the port;
    # cancelled calls stay until the port has answered END
    last_opened: int = -1
    draining: bool = False
    stalled: bool = False  # calls in progress and none finished within its stall time
    served: int = 0
    failed: int = 0
    latency: list[int] = field(default_factory=list)  # see latency.count


@dataclass(slots=True, eq=False)
class Export:
    """One port's declaration of one service."""

    port: PortState
    service: str
    keys: tuple[str, ...] = ()
    credits: int = 0
    fault_handler: bool = False
    stall_s: float = 0.0
    running: int = 0
    turn: int = 0  # dispatches to it
    worst: int = 0  # no running call has a worse class
    work: float = 0.0  # seconds that the running calls are expected to take, all together

    def declare(self, export: pb.Export) -> None:
        """Take what the port declares."""
        self.keys = tuple(dict.fromkeys(export.keys))
        self.credits = export.credits
        self.fault_handler = export.fault_handler
        self.stall_s = export.stall_ms / 1000

    def late(self, now: float) -> bool:
        """Return whether work is in progress and none was finished within the stall time."""
        return self.running > 0 and 0 < self.stall_s < now - self.port.last_progress

    def waits(self) -> bool:
        """Return whether each of its running calls has made calls that others have not finished."""
        return all(
            call.children and call.server_id == id
            for id, call in self.port.serving.items()
            if call.opener is not None and call.service.name == self.service
        )

    def admits(self, call_class: int) -> bool:
        """Return whether the port takes one more call of a class.

        Credits are held back for better classes, which a port full of BATCH work then takes at
        once: of c credits BATCH leaves c/4 free (at least one when c > 1), and NORMAL c/8.
        """
        if self.port.draining or self.port.stalled:
            return False
        credits = self.credits
        if not credits:
            return True
        free = credits - self.running
        if call_class >= pb.CALL_CLASS_BATCH:
            return free > (max(1, credits // 4) if credits > 1 else 0)
        if call_class == pb.CALL_CLASS_NORMAL:
            return free > credits // 8
        return free > 0


@dataclass(slots=True, eq=False)
class Service:
    """One service name: who exports it, and the calls that wait."""

    name: str
    seen: bool = False  # somebody exported it since the kernel started
    handled: bool = False  # ... with a fault handler
    exports: dict[int, Export] = field(default_factory=dict)  # by port
    hot: dict[str, list[Export]] = field(default_factory=dict)  # by key
    known_keys: set[str] = field(default_factory=set)  # hot at some time since the kernel started
    queues: dict[str, KeyQueue] = field(default_factory=dict)  # of hot and of wanted keys
    waiting: dict[str, KeyQueue] = field(default_factory=dict)  # those in which calls wait
    methods: dict[str, Method] = field(default_factory=dict)
    files: tuple[bytes, ...] = ()


NOWHERE = Service("")  # of calls that are not described yet


@dataclass(slots=True, eq=False)
class Call:
    """One call, from OPEN to END."""

    id: int
    opener: PortState | None  # None for the kernel's own faults
    opener_id: int
    path: str
    opened_at: float
    method: Method = UNKNOWN
    service: Service = NOWHERE
    key: str = ""
    call_class: int = pb.CALL_CLASS_NORMAL
    tenant: str = ""
    caller: str = ""
    affinity: str = ""
    deadline: float | None = None
    parent: Call | None = None
    children: dict[Call, None] | None = None  # a set in order
    depth: int = 0  # how many calls this one is nested in
    queue: KeyQueue | None = None  # while it waits
    ticket: int = 0  # which of its waits this is; 0 = it does not wait
    queued_at: float = 0.0
    dispatched_at: float = 0.0
    export: Export | None = None  # who runs it
    server_id: int = 0
    attempts: int = 0
    fruitless: int = 0  # of these, since a stream last got further
    first: pb.Envelope | bytes | None = None  # OPEN, for the (next) server; bytes: encoded
    more: list[pb.Envelope] | None = None  # what followed it
    kept_bytes: int = 0
    replayable: bool = False
    delivered: bool = False  # a reply message was passed on
    cookie: bytes | bytearray = b""
    payer: Tenant | None = None
    counted: bool = False  # `payer` has it counted as open; nested calls are not
    flow: Flow | None = None  # where its cost is settled, while it runs
    home: KeyQueue | None = None  # where it was dispatched from, while it runs
    charged: float = 0.0
    expected: float = 0.0  # seconds it is expected to run

    def pack(self) -> None:
        """Keep OPEN encoded: a third of the memory, for a call that waits in a long queue."""
        if isinstance(self.first, pb.Envelope):
            self.first = self.first.SerializeToString()

    def opening(self) -> pb.Envelope:
        """Return OPEN."""
        first = self.first
        if isinstance(first, bytes):
            first = self.first = pb.Envelope.FromString(first)
        assert first is not None
        return first


@dataclass(slots=True)
class Stats:
    """Counters since the start."""

    opened: int = 0
    redispatched: int = 0
    faults: int = 0
    envelopes: int = 0
    frames: int = 0
    ended: dict[int, int] = field(default_factory=dict)
