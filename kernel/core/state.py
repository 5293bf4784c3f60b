"""The tables of the kernel: ports, their exports, services with their queues, and calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.queues import KeyQueue
from llmos.kernel.core.tenants import Tenant
from llmos.lib.methods import UNKNOWN, Method


class PortState:
    """One attached process."""

    __slots__ = (
        "attached_at",
        "draining",
        "exports",
        "failed",
        "hello",
        "id",
        "identity",
        "last_opened",
        "last_progress",
        "opened",
        "own",
        "served",
        "serving",
        "stalled",
    )

    def __init__(self, port: int, now: float, own: bool) -> None:
        """Start without HELLO."""
        self.id = port
        self.own = own
        self.hello: pb.Hello | None = None
        self.identity: Identity = Identity()
        self.attached_at = now
        self.exports: dict[str, Export] = {}
        self.opened: dict[int, Call] = {}  # by the port's own id
        self.serving: dict[int, Call] = {}  # by the id given to the port; cancelled ones included
        self.last_opened = -1
        self.last_progress = now
        self.draining = False
        self.stalled = False  # calls in progress and none finished within its stall time
        self.served = 0
        self.failed = 0

    @property
    def name(self) -> str:
        """Return the process's name."""
        return self.hello.name if self.hello is not None else ""


@dataclass(frozen=True)
class Identity:
    """What a credential stands for."""

    tenant: str = "local"
    best_class: int = pb.CALL_CLASS_SYSTEM  # the highest class that its calls may have


class Export:
    """One port's declaration of one service."""

    __slots__ = (
        "credits",
        "fault_handler",
        "keys",
        "port",
        "running",
        "service",
        "stall_s",
        "work",
    )

    def __init__(self, port: PortState, service: str) -> None:
        """Start with nothing declared."""
        self.port = port
        self.service = service
        self.keys: tuple[str, ...] = ()
        self.credits = 0
        self.fault_handler = False
        self.stall_s = 0.0
        self.running = 0
        self.work = 0.0  # seconds that the running calls are expected to take, all together

    def declare(self, export: pb.Export) -> None:
        """Take what the port declares."""
        self.keys = tuple(dict.fromkeys(export.keys))
        self.credits = export.credits
        self.fault_handler = export.fault_handler
        self.stall_s = export.stall_ms / 1000

    def late(self, now: float) -> bool:
        """Return whether work is in progress and none was finished within the stall time."""
        return (
            self.stall_s > 0 and self.running > 0 and now - self.port.last_progress > self.stall_s
        )

    def admits(self, call_class: int) -> bool:
        """Return whether the port takes one more call of a class.

        Credits are held back for better classes, so that a port full of BATCH work still takes an
        INTERACTIVE call at once: of c credits BATCH leaves c/4 free (at least one when c > 1), and
        NORMAL c/8.
        """
        credits = self.credits
        if not credits:
            return True
        free = credits - self.running
        if call_class >= pb.CALL_CLASS_BATCH:
            return free > (max(1, credits // 4) if credits > 1 else 0)
        if call_class == pb.CALL_CLASS_NORMAL:
            return free > credits // 8
        return free > 0


class Service:
    """One service name: who exports it, and the calls that wait."""

    __slots__ = (
        "exports",
        "files",
        "handled",
        "hot",
        "known_keys",
        "methods",
        "name",
        "queues",
        "seen",
        "waiting",
    )

    def __init__(self, name: str) -> None:
        """Start without exports."""
        self.name = name
        self.seen = False  # somebody exported it since the kernel started
        self.handled = False  # ... with a fault handler
        self.exports: dict[int, Export] = {}  # by port
        self.hot: dict[str, list[Export]] = {}  # by key
        self.known_keys: set[str] = set()  # keys that were hot since the kernel started
        self.queues: dict[str, KeyQueue] = {}  # of hot keys, and of keys that calls wait for
        self.waiting: dict[str, KeyQueue] = {}  # those of them in which calls wait
        self.methods: dict[str, Method] = {}
        self.files: tuple[bytes, ...] = ()


class Call:
    """One call, from OPEN to END."""

    __slots__ = (
        "affinity",
        "attempts",
        "call_class",
        "caller",
        "charged",
        "children",
        "cookie",
        "deadline",
        "delivered",
        "dispatched_at",
        "expected",
        "export",
        "id",
        "kept",
        "kept_bytes",
        "key",
        "method",
        "opened_at",
        "opener",
        "opener_id",
        "parent",
        "path",
        "queue",
        "queued_at",
        "replayable",
        "server_id",
        "service",
        "share",
        "tenant",
        "used",
    )

    def __init__(
        self, call_id: int, opener: PortState | None, opener_id: int, path: str, now: float
    ) -> None:
        """Start undispatched; `opener` is None for the kernel's own faults."""
        self.id = call_id
        self.opener = opener
        self.opener_id = opener_id
        self.path = path
        self.method: Method = UNKNOWN
        self.service: Service | None = None
        self.key = ""
        self.call_class: int = pb.CALL_CLASS_NORMAL
        self.tenant = ""
        self.caller = ""
        self.deadline: float | None = None
        self.parent: Call | None = None
        self.children: set[Call] | None = None
        self.opened_at = now
        self.queued_at = now
        self.dispatched_at = now
        self.queue: KeyQueue | None = None  # while it waits
        self.share: KeyQueue | None = None  # where its cost is settled
        self.used: Tenant | None = None  # who has it counted as open; None for nested calls
        self.charged = 0.0
        self.expected = 0.0  # seconds it is expected to run
        self.affinity = ""
        self.export: Export | None = None  # who runs it
        self.server_id = 0
        self.attempts = 0
        self.kept: list[pb.Envelope] = []  # OPEN and what followed it, for the (next) server
        self.kept_bytes = 0
        self.replayable = False
        self.delivered = False  # a reply message was passed on
        self.cookie = bytearray()


@dataclass
class Stats:
    """Counters since the start."""

    opened: int = 0
    redispatched: int = 0
    faults: int = 0
    envelopes: int = 0
    frames: int = 0
    ended: dict[int, int] = field(default_factory=dict)
