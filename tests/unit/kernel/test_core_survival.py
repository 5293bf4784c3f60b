"""The kernel's pure core: deaths, hangs, drains, streams, nested calls, liars."""

from __future__ import annotations

import pytest
from kernel_checks import PAGER_FAULT, empty, generate
from kernel_sim import BUFFERS, CREATE, EXECUTION, GENERATE, LOAD, Sim

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.events import DrainRequested
from llmos.kernel.core.limits import Limits


def test_a_fault_handler_that_dies_is_asked_again_when_it_is_back() -> None:
    sim = Sim()
    manager, client = sim.attach("execution"), sim.attach("client")
    manager.export(EXECUTION, fault_handler=True)
    manager.take()
    client.open(GENERATE, generate("m"))
    manager.die()
    sim.advance(1)
    assert not client.take()
    again = sim.attach("execution")
    again.export(EXECUTION, fault_handler=True)
    assert [e.open.method for e in again.take() if e.kind == pb.KIND_OPEN] == [PAGER_FAULT]


def test_a_client_that_dies_stops_its_calls() -> None:
    sim = Sim()
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS, credits=1)
    server.take()
    client.open()
    client.open()
    running = server.one().call
    client.die()
    assert server.one().kind == pb.KIND_CANCEL
    server.end(running, code=1)
    empty(sim)


def test_idempotent_calls_survive_their_server() -> None:
    sim = Sim()
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS)
    server.take()
    call = client.open(CREATE, b"request")
    server.one()
    server.die()
    assert not client.take()
    again = sim.attach("memory")
    again.export(BUFFERS)
    opened = next(e for e in again.take() if e.kind == pb.KIND_OPEN)
    assert opened.payload == b"request" and opened.open.attempt == 1
    again.end(opened.call)
    assert client.one().call == call
    assert sim.core.stats.redispatched == 1
    empty(sim)


def test_a_call_is_not_given_to_servers_for_ever() -> None:
    sim = Sim()
    client = sim.attach("client")
    server = sim.attach("memory")
    server.export(BUFFERS)
    client.open()
    for _ in range(sim.core.limits.max_attempts):
        server.die()
        server = sim.attach("memory")
        server.export(BUFFERS)
    assert client.error() == (14, "SERVER_DIED")
    empty(sim)


def test_a_long_stream_outlives_any_number_of_servers_that_bring_it_on() -> None:
    sim = Sim()
    client = sim.attach("client")
    worker = sim.attach("worker")
    worker.export(EXECUTION, ("m",))
    client.open(GENERATE, generate("m"))
    limit = sim.core.limits.max_attempts
    for i in range(3 * limit):
        opened = next(e for e in worker.take() if e.kind == pb.KIND_OPEN)
        assert opened.open.attempt == i
        worker.data(opened.call, b"a token", cookie=b".")
        assert client.one().payload == b"a token"
        worker.die()
        worker = sim.attach("worker")
        worker.export(EXECUTION, ("m",))
    for _ in range(limit - 1):  # the first of these had brought nothing yet
        assert not client.take()
        worker.die()
        worker = sim.attach("worker")
        worker.export(EXECUTION, ("m",))
    assert client.error() == (14, "SERVER_DIED")
    empty(sim)


def test_calls_that_are_not_idempotent_are_not_repeated() -> None:
    sim = Sim()
    server, client = sim.attach("s"), sim.attach("client")
    server.send(
        pb.Envelope(call=1, kind=pb.KIND_EXPORT, export=pb.Export(service="a.B", keys=[""]))
    )
    server.take()
    client.open("/a.B/C")
    server.take()
    server.die()
    assert client.error() == (14, "SERVER_DIED_MAY_HAVE_RUN")
    empty(sim)


def test_a_stream_goes_on_with_its_resume_log() -> None:
    sim = Sim()
    worker, client = sim.attach("worker"), sim.attach("client")
    worker.export(EXECUTION, ("m",))
    worker.take()
    client.open(GENERATE, generate("m"))
    call = worker.one().call
    worker.data(call, b"one", cookie=b"1")
    worker.data(call, b"two", cookie=b"2")
    assert [e.payload for e in client.take()] == [b"one", b"two"]
    worker.die()
    again = sim.attach("worker")
    again.export(EXECUTION, ("m",))
    opened = next(e for e in again.take() if e.kind == pb.KIND_OPEN)
    assert opened.cookie == b"12" and opened.payload == generate("m")
    again.data(opened.call, b"three", cookie=b"3")
    again.end(opened.call, b"")
    assert [e.payload for e in client.take()] == [b"three", b""]
    empty(sim)


def test_a_stream_without_resume_log_is_not_repeated_once_it_was_seen() -> None:
    sim = Sim()
    worker, client = sim.attach("worker"), sim.attach("client")
    worker.export(EXECUTION, ("m",))
    worker.take()
    client.open(GENERATE, generate("m"))
    worker.data(worker.one().call, b"one")
    client.take()
    worker.die()
    assert client.error() == (14, "SERVER_DIED")
    empty(sim)


def test_children_inherit_class_and_deadline_and_end_with_their_parent() -> None:
    sim = Sim()
    a, b, client = sim.attach("a"), sim.attach("b"), sim.attach("client")
    a.export(EXECUTION, ("",))
    b.export(BUFFERS)
    a.take(), b.take()
    call = client.open(LOAD, call_class=pb.CALL_CLASS_BATCH, timeout_s=5)
    parent = a.one().call
    a.open(CREATE, parent=parent, call_class=pb.CALL_CLASS_SYSTEM, timeout_s=60)
    child = b.one()
    assert child.open.call_class == pb.CALL_CLASS_BATCH
    assert child.open.timeout_us <= 5_000_000
    assert child.open.parent == 0
    client.cancel(call)
    assert b.one().kind == pb.KIND_CANCEL
    assert sorted(e.kind for e in a.take()) == [pb.KIND_END, pb.KIND_CANCEL]
    a.end(parent, code=1)
    b.end(child.call, code=1)
    empty(sim)


def test_a_forged_parent_gains_nothing() -> None:
    sim = Sim()
    server, client, liar = sim.attach("s"), sim.attach("client"), sim.attach("liar")
    server.export(BUFFERS, credits=1)
    server.take()
    client.open(call_class=pb.CALL_CLASS_SYSTEM)
    parent = server.one().call
    liar.open(parent=parent)
    assert liar.error() == (1, "PARENT_ENDED")


def test_calls_wait_for_a_server_that_is_away_but_not_for_ever() -> None:
    sim = Sim(Limits(absence_grace_s=10, startup_grace_s=0))
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS)
    server.die()
    client.open()
    sim.advance(5)
    client.open()
    sim.advance(5)
    assert client.error() == (14, "NO_SERVER")
    sim.advance(5)
    assert client.error() == (14, "NO_SERVER")
    empty(sim)


def test_a_kernel_that_has_just_started_waits_for_servers_to_attach() -> None:
    sim = Sim(Limits(startup_grace_s=5))
    client = sim.attach("client")
    client.open()
    client.open("/no.Such/Method")
    sim.advance(1)
    server = sim.attach("memory")
    server.export(BUFFERS)
    assert [e.kind for e in server.take()] == [pb.KIND_EXPORTED, pb.KIND_OPEN]
    sim.advance(5)
    assert client.error() == (12, "NO_SUCH_SERVICE")


def test_a_draining_port_finishes_and_gets_nothing_new() -> None:
    sim = Sim()
    old, new, client = sim.attach("old"), sim.attach("new"), sim.attach("client")
    old.export(BUFFERS)
    old.take()
    client.open()
    running = old.one().call
    old.send(pb.Envelope(kind=pb.KIND_DRAIN))
    assert old.one().kind == pb.KIND_DRAIN
    client.open()
    assert not old.take()
    new.export(BUFFERS)
    assert [e.kind for e in new.take()] == [pb.KIND_EXPORTED, pb.KIND_OPEN]
    old.end(running)
    assert client.one().kind == pb.KIND_END


def test_draining_a_hot_port_faults_its_key_elsewhere() -> None:
    sim = Sim()
    manager, worker, client = sim.attach("m"), sim.attach("w"), sim.attach("client")
    manager.export(EXECUTION, fault_handler=True)
    worker.export(EXECUTION, ("m",))
    manager.take(), worker.take()
    sim.feed(DrainRequested(worker.port))
    client.open(GENERATE, generate("m"))
    assert manager.one().open.method == PAGER_FAULT


def test_a_hung_port_loses_its_calls_to_another_and_gets_them_no_more() -> None:
    sim = Sim()
    hung, watcher, client = sim.attach("hung"), sim.attach("watcher"), sim.attach("client")
    hung.export(BUFFERS, stall_ms=1000)
    hung.take()
    call = client.open()
    running = hung.one().call
    other = sim.attach("other")
    other.export(BUFFERS)
    other.take()
    sim.advance(2)
    assert hung.one().kind == pb.KIND_CANCEL
    moved = other.one()
    assert (moved.kind, moved.open.attempt) == (pb.KIND_OPEN, 1)
    client.open()
    assert not hung.take()
    other.end(moved.call, b"other")
    assert (client.one().call, sim.core.ports[hung.port].stalled) == (call, True)
    hung.end(running, code=1)  # it has finished something: it is trusted again
    assert not sim.core.ports[hung.port].stalled
    assert not client.take() and not watcher.take()


def test_a_busy_port_that_makes_progress_is_never_called_hung() -> None:
    sim = Sim()
    server, client = sim.attach("s"), sim.attach("client")
    server.export(EXECUTION, ("m",), stall_ms=1000)
    server.take()
    client.open(GENERATE, generate("m"))
    running = server.one().call
    for _ in range(50):
        sim.advance(0.9)
        server.data(running, b"x")
    for _ in range(50):
        sim.advance(0.9)
        server.send(pb.Envelope(kind=pb.KIND_ALIVE))
    assert not sim.core.ports[server.port].stalled


def test_time_in_which_the_kernel_did_not_run_makes_nobody_hung() -> None:
    sim = Sim()
    server, client = sim.attach("s"), sim.attach("client")
    server.export(BUFFERS, stall_ms=1000)
    client.open()
    sim.advance(0.5)
    sim.jump(60)
    assert not sim.core.ports[server.port].stalled, "what it sent meanwhile is not read yet"
    sim.advance(0.4)
    assert not sim.core.ports[server.port].stalled
    sim.advance(0.6)
    assert sim.core.ports[server.port].stalled


def test_a_port_that_waits_for_another_server_is_not_hung() -> None:
    sim = Sim()
    front, back, client = sim.attach("front"), sim.attach("back"), sim.attach("client")
    front.export(EXECUTION, ("m",), stall_ms=1000)
    back.export(BUFFERS)
    client.open(GENERATE, generate("m"))
    front.open(parent=front.take()[-1].call)
    nested = back.take()[-1].call
    sim.advance(10)
    assert not sim.core.ports[front.port].stalled
    back.end(nested)
    sim.advance(0.8)
    assert not sim.core.ports[front.port].stalled, "its own time begins when the other is done"
    sim.advance(1)
    assert sim.core.ports[front.port].stalled


def test_a_hung_port_is_trusted_again_when_it_makes_progress() -> None:
    sim = Sim()
    server, client = sim.attach("s"), sim.attach("client")
    server.export(EXECUTION, ("m",), stall_ms=1000)
    client.open(GENERATE, generate("m"))
    server.data(server.take()[-1].call, b"x")  # without a resume log: it cannot be moved away
    sim.advance(2)
    assert sim.core.ports[server.port].stalled
    server.send(pb.Envelope(kind=pb.KIND_ALIVE))
    assert not sim.core.ports[server.port].stalled


@pytest.mark.parametrize(
    "envelope",
    [
        pb.Envelope(kind=pb.KIND_WELCOME),
        pb.Envelope(kind=99),  # type: ignore[arg-type]
        pb.Envelope(call=2, kind=pb.KIND_OPEN, open=pb.Open(method="/a.B/C")),
        pb.Envelope(call=4, kind=pb.KIND_END),
        pb.Envelope(call=5, kind=pb.KIND_DATA),
        pb.Envelope(call=1, kind=pb.KIND_END),
        pb.Envelope(kind=pb.KIND_CREDIT, credit=pb.Credit(service="x")),
    ],
)
def test_whoever_breaks_the_protocol_is_disconnected_alone(envelope: pb.Envelope) -> None:
    sim = Sim()
    server, client, liar = sim.attach("s"), sim.attach("client"), sim.attach("liar")
    server.export(BUFFERS)
    server.take()
    liar.open()
    server.take()
    liar.send(envelope)
    assert sim.closed[liar.port].reason == "BAD_FRAME"
    client.open()
    opened = [e for e in server.take() if e.kind == pb.KIND_OPEN]
    server.end(opened[0].call)
    assert client.one().kind == pb.KIND_END


def test_a_port_must_say_hello_first() -> None:
    sim = Sim()
    sim.attach("x")
    from llmos.kernel.core.events import Attached, Received

    sim.feed(Attached(50))
    sim.feed(Received(50, [pb.Envelope(kind=pb.KIND_DRAIN)]))
    assert sim.closed[50].reason == "BAD_FRAME"
    sim.feed(Attached(51))
    hello = pb.Hello(protocol=9, name="n", instance="instance-x")
    sim.feed(Received(51, [pb.Envelope(kind=pb.KIND_HELLO, hello=hello)]))
    assert sim.closed[51].reason == "PROTOCOL_VERSION"
