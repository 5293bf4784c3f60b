"""The pure core under rules that hypothesis combines and shrinks: small worlds, odd orders."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)
from kernel_invariants import check, check_empty, expect
from kernel_sim import Peer, Sim
from kernel_world import FILES, tenancy

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.core import Core
from llmos.kernel.core.events import CancelRequested, DrainRequested
from llmos.kernel.core.limits import Limits

EXAMPLES = int(os.environ.get("LLMOS_EXAMPLES", "60"))
SERVICES = st.sampled_from(("sim.A", "sim.Model"))
KEYS = st.sampled_from(((), ("",), ("m",), ("", "m"), ("m", "n")))
CLASSES = st.sampled_from((0, 1, 2, 3, 4))
METHODS = st.sampled_from(("Idem", "Once", "Stream", "Resume", "Collect"))
LIMITS = Limits(
    max_queued=6,
    max_queued_per_key=4,
    ageing_s=2.0,
    absence_grace_s=3.0,
    startup_grace_s=1.0,
    max_attempts=3,
    max_depth=3,
)


class Kernel(RuleBasedStateMachine):
    """Ports with what they opened and serve, judged from outside; the core, from inside."""

    ports: Bundle[Peer] = Bundle("ports")

    @initialize()
    def start(self) -> None:
        self.sim = Sim()
        self.sim.core = Core("k", "host", LIMITS, tenancy)
        self.sim.now = 5e6
        self.peers: dict[int, Peer] = {}
        self.asked: dict[int, dict[int, str]] = {}  # by port: method by own call
        self.given: dict[int, list[int]] = {}  # by port: calls it got and has not ended

    def look(self) -> None:
        """Take what was sent to every port."""
        for number, error in self.sim.closed.items():
            expect("nobody is disconnected", False, f"{number}: {error}")
        for number, peer in self.peers.items():
            for envelope in peer.take():
                if envelope.call & 1 and envelope.kind in (pb.KIND_END, pb.KIND_DATA):
                    asked = self.asked[number]
                    expect("no call is answered twice", envelope.call in asked, envelope)
                    if envelope.kind == pb.KIND_END:
                        del asked[envelope.call]
                elif envelope.kind == pb.KIND_OPEN:
                    self.given[number].append(envelope.call)

    @rule(target=ports, tenant=st.sampled_from(("", "ann", "bob!")))
    def attach(self, tenant: str) -> MultipleResults[Peer] | Peer:
        if len(self.peers) >= 5:
            return multiple()
        peer = self.sim.attach(f"p{len(self.peers)}", credential=tenant.encode())
        self.peers[peer.port], self.asked[peer.port], self.given[peer.port] = peer, {}, []
        return peer

    @rule(
        peer=ports,
        service=SERVICES,
        keys=KEYS,
        credits=st.integers(0, 3),
        handler=st.booleans(),
        stall=st.sampled_from((0, 1000)),
    )
    def export(
        self,
        peer: Peer,
        service: str,
        keys: tuple[str, ...],
        credits: int,
        handler: bool,
        stall: int,
    ) -> None:
        if peer.port in self.peers:
            peer.export(service, keys, credits, handler, stall, FILES)
            self.look()

    @rule(
        peer=ports,
        service=SERVICES,
        method=METHODS,
        key=st.sampled_from(("", "m", "n")),
        call_class=CLASSES,
        timeout=st.sampled_from((0.0, 0.5, 5.0)),
        which=st.none() | st.integers(0, 5),
        whole=st.booleans(),
    )
    def ask(
        self,
        peer: Peer,
        service: str,
        method: str,
        key: str,
        call_class: int,
        timeout: float,
        which: int | None,
        whole: bool,
    ) -> None:
        if peer.port not in self.peers:
            return
        given = self.given[peer.port]
        parent = given[which % len(given)] if which is not None and given else 0
        flags = pb.FLAG_MESSAGE | (pb.FLAG_HALF_CLOSE if whole else 0)
        self.asked[peer.port][peer.next_call] = method
        path = f"/{service}/{method}"
        peer.open(path, b"x", flags, call_class, timeout, parent, key)
        self.look()

    @rule(peer=ports, which=st.integers(0, 5), last=st.booleans())
    def say_more(self, peer: Peer, which: int, last: bool) -> None:
        if asked := list(self.asked.get(peer.port, ())):
            flags = pb.FLAG_MESSAGE | (pb.FLAG_HALF_CLOSE if last else 0)
            peer.data(asked[which % len(asked)], b"more", flags=flags)
            self.look()

    @rule(peer=ports, which=st.integers(0, 5))
    def give_up(self, peer: Peer, which: int) -> None:
        if asked := list(self.asked.get(peer.port, ())):
            call = asked[which % len(asked)]
            del self.asked[peer.port][call]
            peer.cancel(call)
            self.look()

    @rule(peer=ports, which=st.integers(0, 5), code=st.sampled_from((0, 0, 1, 5, 14)))
    def end(self, peer: Peer, which: int, code: int) -> None:
        if given := self.given.get(peer.port):
            peer.end(given.pop(which % len(given)), code=code)
            self.look()

    @rule(peer=ports, which=st.integers(0, 5), cookie=st.sampled_from((b"", b"c")))
    def reply(self, peer: Peer, which: int, cookie: bytes) -> None:
        if given := self.given.get(peer.port):
            peer.data(given[which % len(given)], b"reply", cookie)
            self.look()

    @rule(peer=ports, service=SERVICES, credits=st.integers(0, 3))
    def credit(self, peer: Peer, service: str, credits: int) -> None:
        port = self.sim.core.ports.get(peer.port)
        if port is not None and service in port.exports:
            credit = pb.Credit(service=service, credits=credits)
            peer.send(pb.Envelope(kind=pb.KIND_CREDIT, credit=credit))
            self.look()

    @rule(peer=ports, kind=st.sampled_from((pb.KIND_DRAIN, pb.KIND_ALIVE)))
    def about_itself(self, peer: Peer, kind: pb.Kind.ValueType) -> None:
        if peer.port in self.peers:
            peer.send(pb.Envelope(kind=kind))
            self.look()

    @rule(peer=ports)
    def die(self, peer: Peer) -> None:
        if self.peers.pop(peer.port, None) is not None:
            peer.die()
            del self.asked[peer.port], self.given[peer.port]
            self.look()

    @rule(peer=ports, which=st.integers(0, 9))
    def operator(self, peer: Peer, which: int) -> None:
        calls = list(self.sim.core.calls.table)
        if which == 9:
            self.sim.feed(DrainRequested(peer.port))
        elif calls:
            self.sim.feed(CancelRequested(calls[which % len(calls)]))
        self.look()

    @rule(seconds=st.sampled_from((0.1, 0.6, 1.1, 3.1)))
    def wait(self, seconds: float) -> None:
        until = self.sim.now + seconds
        while (wake := self.sim.wake) is not None and wake < until:
            self.sim.advance(max(0.0, wake - self.sim.now))
        self.sim.advance(until - self.sim.now)
        self.look()

    @invariant()
    def all_invariants_hold(self) -> None:
        check(self.sim.core, self.sim.now)
        for number, asked in self.asked.items():
            opened = set(self.sim.core.ports[number].opened)
            expect("no call is lost", opened == set(asked), (number, opened, asked))

    def teardown(self) -> None:
        """Serve everything until nothing is left."""
        if not hasattr(self, "sim"):
            return
        for _ in range(100):
            for number, given in self.given.items():
                while given:
                    self.peers[number].end(given.pop(), code=1)
            self.wait(1.0)
        check(self.sim.core, self.sim.now)
        check_empty(self.sim.core)
        expect("every call was answered", not any(self.asked.values()), self.asked)


TestKernel = Kernel.TestCase
TestKernel.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
