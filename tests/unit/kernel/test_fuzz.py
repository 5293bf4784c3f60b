"""The pure core against ports that lie: nothing escapes, nothing leaks, nobody else suffers."""

from __future__ import annotations

import os

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kernel_invariants import check, check_empty
from kernel_sim import Peer, Sim
from kernel_world import FILES

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.events import Attached, Detached, Received
from llmos.kernel.core.limits import Limits

EXAMPLES = int(os.environ.get("LLMOS_EXAMPLES", "150"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
LIAR = 99
IDS = st.integers(0, 9) | st.integers(0, 2**64 - 1)
U32 = st.integers(0, 9) | st.integers(0, 2**32 - 1)
INT32 = st.integers(-2, 15) | st.integers(-(2**31), 2**31 - 1)
COST = st.floats(allow_nan=True, allow_infinity=True)
NAMES = st.sampled_from(("sim.A", "sim.C", "sim.Model", "", ".", "x.Y")) | st.text(max_size=20)
METHODS = st.sampled_from(
    ("/sim.B/Idem", "/sim.B/Nope", "/sim.A/Once", "/sim.A/Collect", "/x.Y/Z", "", "/", "//", "x")
) | st.text(max_size=20)
KEYS = st.sampled_from(("", "m", "x" * 300)) | st.text(max_size=5)
SMALL = st.binary(max_size=40)

METADATA = st.lists(st.builds(pb.Metadatum, key=st.text(max_size=5), value=SMALL), max_size=2)
OPENS = st.builds(
    pb.Open,
    method=METHODS,
    key=KEYS,
    call_class=INT32,
    timeout_us=st.integers(0, 100) | st.integers(0, 2**64 - 1),
    parent=IDS,
    metadata=METADATA,
    request_id=st.text(max_size=5),
    tenant=st.text(max_size=5),
    caller=st.text(max_size=5),
    attempt=U32,
    trace=st.text(max_size=5),
    caller_host=st.text(max_size=5),
    affinity=st.text(max_size=5),
)
STATUSES = st.builds(pb.Status, code=U32, message=st.text(max_size=9), trailers=METADATA, cost=COST)
EXPORTS = st.builds(
    pb.Export,
    service=st.just("sim.A") | NAMES,
    keys=st.just([""]) | st.lists(KEYS, max_size=4),
    credits=U32,
    fault_handler=st.booleans(),
    stall_ms=U32,
    files=st.just(FILES) | st.lists(SMALL, max_size=2),
)
HELLOS = st.builds(
    pb.Hello,
    protocol=st.just(1) | U32,
    name=st.text(max_size=9),
    instance=st.text(max_size=70),
    pid=U32,
    host=st.text(max_size=9),
    credential=SMALL,
)
REST = {
    "call": IDS,
    "payload": SMALL,
    "flags": U32,
    "cookie": SMALL,
    "window": U32,
}
ENVELOPES = st.one_of(
    st.builds(pb.Envelope, kind=st.just(pb.KIND_OPEN), open=OPENS, **REST),
    st.builds(pb.Envelope, kind=st.just(pb.KIND_EXPORT), export=EXPORTS, **REST),
    st.builds(pb.Envelope, kind=st.just(pb.KIND_END), status=STATUSES, **REST),
    st.builds(
        pb.Envelope,
        kind=INT32,
        open=st.none() | OPENS,
        status=st.none() | STATUSES,
        export=st.none() | EXPORTS,
        hello=st.none() | HELLOS,
        credit=st.none() | st.builds(pb.Credit, service=NAMES, credits=U32),
        **REST,
    ),
)


class Honest:
    """A kernel with a server and a client that keep the rules, and a liar's port."""

    def __init__(self) -> None:
        self.sim = Sim(Limits(startup_grace_s=0, absence_grace_s=5))
        self.server, self.client = self.sim.attach("server"), self.sim.attach("client")
        self.server.export("sim.B", credits=50, files=FILES)
        self.sim.feed(Attached(LIAR))
        hello = pb.Hello(protocol=1, name="liar", instance="instance-liar")
        self.say([pb.Envelope(kind=pb.KIND_HELLO, hello=hello)])
        self.call = self.client.open("/sim.B/Once")

    def say(self, envelopes: list[pb.Envelope]) -> None:
        """The liar sends a frame."""
        self.sim.feed(Received(LIAR, envelopes))
        check(self.sim.core, self.sim.now)

    def survive(self) -> None:
        """Assert that the honest are served, and that nothing is left when the liar is gone."""
        sim = self.sim
        assert set(sim.closed) <= {LIAR}, sim.closed
        sim.advance(0.5)
        sim.feed(Detached(LIAR))
        check(sim.core, sim.now)
        self.serve(self.server)
        answers = [e for e in self.client.take() if e.call == self.call]
        assert [(e.kind, e.payload) for e in answers] == [(pb.KIND_END, b"ok")]
        again = self.client.open("/sim.B/Once")
        self.serve(self.server)
        assert (again, b"ok") in [(e.call, e.payload) for e in self.client.take()]
        sim.advance(10)
        check(sim.core, sim.now)
        check_empty(sim.core)

    def serve(self, server: Peer) -> None:
        for envelope in server.take():
            if envelope.kind == pb.KIND_OPEN:
                server.end(envelope.call)


@FUZZ
@given(st.lists(st.lists(ENVELOPES, min_size=1, max_size=4), max_size=6))
def test_no_envelope_harms_anybody_else(frames: list[list[pb.Envelope]]) -> None:
    world = Honest()
    for frame in frames:
        world.say(frame)
        world.client.open("/sim.A/Idem", timeout_s=1)  # which the liar may have exported
        world.sim.advance(0.1)
    world.survive()


@FUZZ
@given(
    st.lists(ENVELOPES, max_size=4), st.lists(st.tuples(st.integers(0, 10**6), SMALL), max_size=4)
)
def test_no_bytes_harm_anybody_else(
    envelopes: list[pb.Envelope], cuts: list[tuple[int, bytes]]
) -> None:
    data = pb.Frame(envelopes=envelopes).SerializeToString()
    for at, new in cuts:
        at %= len(data) + 1
        data = data[:at] + new + data[at + len(new) // 2 :]
    world = Honest()
    try:
        world.say(list(pb.Frame.FromString(data).envelopes))
    except DecodeError:
        pass  # the transport ends the stream: BAD_FRAME
    world.survive()


@FUZZ
@given(HELLOS)
@example(pb.Hello(protocol=1, name="thief", instance="instance-lia"))
def test_no_hello_harms_anybody_else(hello: pb.Hello) -> None:
    world = Honest()
    world.sim.feed(Attached(100))
    world.sim.feed(Received(100, [pb.Envelope(kind=pb.KIND_HELLO, hello=hello)]))
    check(world.sim.core, world.sim.now)
    world.sim.closed.pop(100, None)
    world.sim.feed(Detached(100))
    world.survive()


TRAILERS = st.lists(
    st.builds(
        pb.Metadatum,
        key=st.sampled_from(("retry-after-ms", "grpc-status-details-bin", "x")),
        value=SMALL | st.sampled_from(("\u00b2".encode(), b"9" * 5000, b"9" * 40, b"-1")),
    ),
    max_size=3,
)


@FUZZ
@given(U32, TRAILERS)
def test_no_answer_of_a_fault_handler_harms_anybody(
    code: int, trailers: list[pb.Metadatum]
) -> None:
    sim = Sim()
    manager, client = sim.attach("manager"), sim.attach("client")
    manager.export("sim.Model", fault_handler=True, files=FILES)
    client.open("/sim.Model/Idem", key="m", timeout_s=10)
    fault = manager.take()[-1].call
    status = pb.Status(code=code, message="m", trailers=trailers)
    manager.send(pb.Envelope(call=fault, kind=pb.KIND_END, status=status))
    check(sim.core, sim.now)
    if code:
        end = client.one()
        assert end.kind == pb.KIND_END and end.status.code
        check_empty(sim.core)


def open_(method: str = "/sim.B/Idem", call: int = 1, **fields: object) -> pb.Envelope:
    opened = pb.Open(method=method, **fields)  # type: ignore[arg-type]
    return pb.Envelope(call=call, kind=pb.KIND_OPEN, open=opened)


@pytest.mark.parametrize("timeout", [2**64 - 1, 10**15, 10**15 - 1, 1])
def test_any_deadline_can_be_passed_on(timeout: int) -> None:
    world = Honest()
    world.say([open_(timeout_us=timeout)])
    world.survive()


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_cost_that_is_none_ends_the_server_that_reports_it(cost: float) -> None:
    sim = Sim()
    server, client = sim.attach("server"), sim.attach("client")
    server.export("sim.A", files=FILES)
    client.open("/sim.A/Once")
    call = server.take()[-1].call
    server.send(pb.Envelope(call=call, kind=pb.KIND_END, status=pb.Status(cost=cost)))
    assert sim.closed[server.port].reason == "BAD_FRAME"
    assert client.error() == (14, "SERVER_DIED_MAY_HAVE_RUN")
    check_empty(sim.core)


def test_calls_that_nest_without_end_are_stopped() -> None:
    sim = Sim()
    loop, client = sim.attach("loop"), sim.attach("client")
    loop.export("sim.A", files=FILES)
    loop.take()
    call = client.open("/sim.A/Idem")
    for _ in range(sim.core.limits.max_depth):
        loop.open("/sim.A/Idem", parent=loop.take()[-1].call)
    loop.open("/sim.A/Idem", parent=loop.take()[-1].call)
    assert loop.error() == (8, "NESTED_TOO_DEEP")
    client.cancel(call)
    check(sim.core, sim.now)
    for envelope in loop.take():
        if envelope.kind == pb.KIND_CANCEL:
            loop.end(envelope.call, code=1)
    check_empty(sim.core)


def test_names_that_nobody_exports_take_no_memory() -> None:
    world = Honest()
    before = len(world.sim.core.scheduler.services)
    for number in range(200):
        world.say([open_(f"/no.Such{number}/M", 2 * number + 1, parent=number % 2 * 8)])
        export = pb.Export(service=f"bad.{number}", keys=["k"], files=[b"\xff"])
        world.say([pb.Envelope(kind=pb.KIND_EXPORT, export=export)])
        withdrawn = pb.Export(service=f"none.{number}", files=FILES)
        world.say([pb.Envelope(kind=pb.KIND_EXPORT, export=withdrawn)])
    world.say([pb.Envelope(kind=pb.KIND_DRAIN)])
    assert len(world.sim.core.scheduler.services) == before
    world.survive()


def test_services_in_all_are_bounded() -> None:
    world = Honest()
    world.sim.core.limits.max_services = 3
    for number in range(4):
        export = pb.Export(service=f"x.{number}", keys=["k"])
        world.say([pb.Envelope(call=number, kind=pb.KIND_EXPORT, export=export)])
    assert len(world.sim.core.scheduler.services) == 3
    assert [e.status.code for e in world.sim.sent[LIAR][1:]] == [0, 0, 3, 3]
    world.survive()


def test_a_call_whose_server_was_changed_has_no_more_children() -> None:
    sim = Sim()
    hung, client = sim.attach("hung"), sim.attach("client")
    hung.export("sim.A", stall_ms=1000, files=FILES)
    hung.take()
    client.open("/sim.A/Idem")
    old = hung.one().call
    other = sim.attach("other")
    other.export("sim.A", files=FILES)
    sim.advance(2)
    hung.take()
    hung.open("/sim.A/Idem", parent=old)
    assert hung.error() == (1, "PARENT_ENDED")
