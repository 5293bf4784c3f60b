"""Clients of the simulated world: they open calls and judge every answer."""

from __future__ import annotations

from kernel_invariants import expect
from kernel_world import UID, Process, World

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib.status import from_wire

MESSAGE = pb.FLAG_MESSAGE
LAST = pb.FLAG_MESSAGE | pb.FLAG_HALF_CLOSE
TRUTHS = {
    # reason -> (least, most) times that the call may have been given to servers
    "NO_SERVER": (0, 99),  # 0 unless a server that had it died
    "NO_SUCH_SERVICE": (0, 0),
    "NO_SUCH_KEY": (0, 0),
    "QUEUE_FULL": (0, 0),
    "QUOTA_CALLS": (0, 0),
    "QUOTA_RATE": (0, 0),
    "DEADLINE": (0, 99),
    "DEADLINE_CANNOT_BE_MET": (0, 99),
    "SERVER_DIED": (1, 99),
    "SERVER_DIED_MAY_HAVE_RUN": (1, 1),
    "FAULT_WITHOUT_EFFECT": (0, 99),
    "CANCELLED_BY_OPERATOR": (0, 99),
    "NOT_FOUND": (0, 99),  # what a manager answers that cannot load
    "FAILED_PRECONDITION": (1, 99),  # a server whose own call to another failed
}


class Asked:
    """What a client knows of a call it opened."""

    __slots__ = ("deadline", "method", "pieces", "seen", "service", "uid")

    def __init__(self, uid: int, service: str, method: str, deadline: float | None) -> None:
        self.uid = uid
        self.service = service
        self.method = method
        self.deadline = deadline
        self.pieces = 0  # asked for, of a stream
        self.seen = 0  # pieces that came


class Client(Process):
    """Opens calls; keeps what is open in `asked`, by its call id."""

    def __init__(self, world: World, name: str, tenant: str) -> None:
        super().__init__(world, name, tenant)
        self.asked: dict[int, Asked] = {}
        self._leaving: list[int] = []  # given up, which the kernel does not know yet
        self._next = 1

    def attach(self) -> None:
        self.asked.clear()
        self._leaving.clear()
        self._next = 1
        super().attach()

    def ask(
        self,
        service: str,
        method: str = "Idem",
        key: str = "",
        call_class: int = 0,
        timeout_s: float = 0.0,
        pieces: int = 1,
        affinity: str = "",
    ) -> int:
        """Open a call; return its id."""
        call = self._next
        self._next += 2
        # At the earliest: the kernel counts from when the frame arrives.
        deadline = self.world.now + timeout_s if timeout_s else None
        asked = self.asked[call] = Asked(self.world.uid(), service, method, deadline)
        asked.pieces = pieces if method in ("Stream", "Resume", "Collect") else 1
        opened = pb.Open(
            method=f"/{service}/{method}",
            key=key,
            call_class=call_class,  # type: ignore[arg-type]
            timeout_us=int(timeout_s * 1e6),
            affinity=affinity,
        )
        collect = method == "Collect"
        self.send(
            pb.Envelope(
                call=call,
                kind=pb.KIND_OPEN,
                payload=UID.pack(asked.uid, asked.pieces),
                flags=MESSAGE if collect else LAST,
                open=opened,
            )
        )
        if collect:
            self.world.at(0.002, self._more, call, self.port, 1)
        return call

    def _more(self, call: int, port: int, number: int) -> None:
        asked = self.asked.get(call)
        if asked is None or not self.alive or port != self.port:
            return
        last = number >= asked.pieces
        payload = UID.pack(asked.uid, number)
        flags = LAST if last else MESSAGE
        self.send(pb.Envelope(call=call, kind=pb.KIND_DATA, payload=payload, flags=flags))
        if not last:
            self.world.at(0.002, self._more, call, port, number + 1)

    def cancel(self, call: int, port: int) -> None:
        """Give a call up."""
        if call in self.asked and self.alive and port == self.port:
            self.send(pb.Envelope(call=call, kind=pb.KIND_CANCEL))
            self._leaving.append(call)

    def arrived(self) -> None:
        for call in self._leaving:
            if self.asked.pop(call, None) is not None:
                self.world.outcomes["given up"] += 1
        self._leaving.clear()

    def take(self, envelope: pb.Envelope) -> None:
        kind = envelope.kind
        if kind in (pb.KIND_WELCOME, pb.KIND_HEADERS, pb.KIND_WINDOW):
            return
        asked = self.asked.get(envelope.call)
        expect("no call is answered twice, or after it was cancelled", asked is not None, envelope)
        assert asked is not None
        if envelope.flags & MESSAGE and asked.method in ("Stream", "Resume"):
            uid, number = UID.unpack(envelope.payload)
            expect(
                "a stream has no gap and no duplicate",
                (uid, number) == (asked.uid, asked.seen),
                f"call {asked.uid}: {number} came after {asked.seen} pieces",
            )
            asked.seen += 1
        if kind == pb.KIND_END:
            del self.asked[envelope.call]
            self.answered(asked, envelope)

    def answered(self, asked: Asked, envelope: pb.Envelope) -> None:
        """Judge an END."""
        world = self.world
        code = envelope.status.code
        runs = world.executions[asked.uid]
        if not code:
            uid, _ = UID.unpack(envelope.payload)
            expect("an answer belongs to its call", uid == asked.uid and runs > 0, asked.uid)
            if asked.method in ("Stream", "Resume"):
                expect("a stream is complete", asked.seen == asked.pieces, asked.uid)
            world.outcomes["OK"] += 1
            return
        pairs = [(t.key, t.value) for t in envelope.status.trailers]
        reason = from_wire(code, envelope.status.message, pairs).reason
        world.outcomes[reason] += 1
        least, most = TRUTHS.get(reason, (1, 0))
        expect("errors are truthful", least <= runs <= most, f"{reason} after {runs} runs")
        if reason == "DEADLINE":
            late = asked.deadline is not None and world.now >= asked.deadline - 1e-6
            expect("no call ends before its deadline for its deadline", late, asked.uid)

    def die(self) -> None:
        self.asked.clear()
        super().die()
