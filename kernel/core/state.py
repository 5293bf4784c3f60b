"""The tables of the kernel: ports, their exports, services with their queues, and calls."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib.methods import UNKNOWN, Method

CLASSES = (
    pb.CALL_CLASS_SYSTEM,
    pb.CALL_CLASS_INTERACTIVE,
    pb.CALL_CLASS_NORMAL,
    pb.CALL_CLASS_BATCH,
)


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

    __slots__ = ("credits", "fault_handler", "keys", "port", "running", "service", "stall_s")

    def __init__(self, port: PortState, service: str) -> None:
        """Start with nothing declared."""
        self.port = port
        self.service = service
        self.keys: tuple[str, ...] = ()
        self.credits = 0
        self.fault_handler = False
        self.stall_s = 0.0
        self.running = 0

    def declare(self, export: pb.Export) -> None:
        """Take what the port declares."""
        self.keys = tuple(dict.fromkeys(export.keys))
        self.credits = export.credits
        self.fault_handler = export.fault_handler
        self.stall_s = export.stall_ms / 1000

    def stalled(self, now: float) -> bool:
        """Return whether work is in progress and none was finished within the stall time."""
        return (
            self.stall_s > 0 and self.running > 0 and now - self.port.last_progress > self.stall_s
        )

    def free(self) -> bool:
        """Return whether the port takes one more call."""
        return not self.credits or self.running < self.credits


class KeyQueue:
    """Calls that wait for one key of a service, by class."""

    __slots__ = ("classes", "count", "fault", "fault_tries", "key", "timer_at")

    def __init__(self, key: str) -> None:
        """Start empty."""
        self.key = key
        self.classes: dict[int, deque[Call]] = {c: deque() for c in CLASSES}
        self.count = 0
        self.fault: Call | None = None  # the fault being handled
        self.fault_tries = 0
        self.timer_at: float | None = None  # when absence is looked at again

    def push(self, call: Call) -> None:
        """Queue a call; one that was running before goes to the head."""
        queue = self.classes[call.call_class]
        if call.attempts:
            queue.appendleft(call)
        else:
            queue.append(call)
        call.queue = self
        self.count += 1

    def pop(self) -> Call | None:
        """Take the first call of the best class."""
        for queue in self.classes.values():
            if queue:
                call = queue.popleft()
                call.queue = None
                self.count -= 1
                return call
        return None

    def remove(self, call: Call) -> None:
        """Take a call out of the middle."""
        self.classes[call.call_class].remove(call)
        call.queue = None
        self.count -= 1

    def calls(self) -> list[Call]:
        """Return the waiting calls in the order in which they would be dispatched."""
        return [call for queue in self.classes.values() for call in queue]


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
    )

    def __init__(self, name: str) -> None:
        """Start without exports."""
        self.name = name
        self.seen = False  # somebody exported it since the kernel started
        self.handled = False  # ... with a fault handler
        self.exports: dict[int, Export] = {}  # by port
        self.hot: dict[str, list[Export]] = {}  # by key
        self.known_keys: set[str] = set()  # keys that were hot since the kernel started
        self.queues: dict[str, KeyQueue] = {}  # only while calls wait or a fault is handled
        self.methods: dict[str, Method] = {}
        self.files: tuple[bytes, ...] = ()


class Call:
    """One call, from OPEN to END."""

    __slots__ = (
        "attempts",
        "call_class",
        "caller",
        "children",
        "cookie",
        "deadline",
        "delivered",
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
        "tenant",
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
        self.queue: KeyQueue | None = None
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
