"""The kernel's pure core: the order between keys that share credits, ageing, and raised classes."""

from __future__ import annotations

from kernel_invariants import check, check_empty
from kernel_sim import BUFFERS, CREATE, EXECUTION, GENERATE, LOAD, UNARY, Peer, Sim

from llmos.api.execution.v1 import execution_pb2
from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.limits import Limits

BATCH, INTERACTIVE = pb.CALL_CLASS_BATCH, pb.CALL_CLASS_INTERACTIVE


def generate(model: str) -> bytes:
    return execution_pb2.GenerateRequest(model=model, prompt="p").SerializeToString()


def serve_all(sim: Sim, server: Peer) -> list[str]:
    """End what runs until nothing is left, one second each; return the keys in order."""
    keys = []
    while opened := [e for e in server.take() if e.kind == pb.KIND_OPEN]:
        for envelope in opened:
            keys.append(envelope.open.key)
            sim.advance(1)
            server.end(envelope.call)
            check(sim.core, sim.now)
    return keys


def test_classes_hold_between_keys_that_share_credits() -> None:
    sim = Sim()
    server, client = sim.attach("worker"), sim.attach("client")
    server.export(EXECUTION, ("m", "m@1"), credits=1)
    for key, call_class in (("m", 0), ("m", 0), ("m@1", INTERACTIVE), ("m", INTERACTIVE)):
        client.open(GENERATE, generate(key), call_class=call_class)
    assert serve_all(sim, server) == ["m", "m@1", "m", "m"]


def test_keys_that_share_credits_take_turns() -> None:
    sim = Sim()
    server, client = sim.attach("worker"), sim.attach("client")
    server.export(EXECUTION, ("m", "m@1"), credits=1)
    for _ in range(6):
        client.open(GENERATE, generate("m"))
    for _ in range(2):
        client.open(GENERATE, generate("m@1"))
    assert serve_all(sim, server)[:5] == ["m", "m@1", "m", "m@1", "m"]


def test_a_key_with_batch_work_only_is_not_starved_by_another_key() -> None:
    sim = Sim(Limits(ageing_s=10))
    server, client = sim.attach("worker"), sim.attach("client")
    server.export(EXECUTION, ("m", "m@1"), credits=1)
    client.open(GENERATE, generate("m"), call_class=INTERACTIVE)
    for _ in range(10):
        client.open(GENERATE, generate("m@1"), call_class=BATCH)
    keys = []
    for _ in range(40):
        client.open(GENERATE, generate("m"), call_class=INTERACTIVE)
        (opened,) = [e for e in server.take() if e.kind == pb.KIND_OPEN]
        keys.append(opened.open.key)
        sim.advance(1)
        server.end(opened.call)
    assert "m@1" not in keys[:10]
    assert keys[10:34].count("m@1") == 6  # every fourth turn


def test_aged_turns_go_to_the_call_that_waited_longest_whatever_its_class() -> None:
    sim = Sim(Limits(ageing_s=10))
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS, credits=1)
    server.take()
    client.open(call_class=INTERACTIVE)
    client.open()
    sim.advance(1)
    client.open(call_class=BATCH)
    sim.advance(1)
    for _ in range(50):
        client.open(call_class=INTERACTIVE)
    classes = []
    for _ in range(24):
        (opened,) = [e for e in server.take() if e.kind == pb.KIND_OPEN]
        classes.append(opened.open.call_class)
        sim.advance(1)
        server.end(opened.call)
    assert classes.index(pb.CALL_CLASS_NORMAL) < classes.index(BATCH)


def test_a_call_that_is_raised_runs_at_once_where_credits_are_kept_for_its_class() -> None:
    sim = Sim()
    manager, memory, client = sim.attach("manager"), sim.attach("memory"), sim.attach("client")
    manager.export(EXECUTION, fault_handler=True)
    memory.export(BUFFERS, credits=8)
    manager.take(), memory.take()
    for _ in range(9):
        client.open(CREATE)
    assert len(memory.take()) == 7  # one is kept for better classes
    client.open(GENERATE, generate("m"))
    fault = manager.one().call
    grant = manager.open(CREATE, parent=fault)
    assert not memory.take()
    client.open(GENERATE, generate("m"), call_class=INTERACTIVE)
    assert [e.open.call_class for e in memory.take()] == [INTERACTIVE]
    assert grant
    check(sim.core, sim.now)


def test_a_raised_call_that_waits_for_an_absent_server_ends_once() -> None:
    sim = Sim(Limits(absence_grace_s=10))
    manager, memory, client = sim.attach("manager"), sim.attach("memory"), sim.attach("client")
    manager.export(EXECUTION, fault_handler=True)
    memory.export(BUFFERS)
    memory.die()
    manager.take()
    client.open(CREATE)
    client.open(GENERATE, generate("m"))
    fault = manager.one().call
    grant = manager.open(CREATE, parent=fault)
    client.open(GENERATE, generate("m"), call_class=INTERACTIVE)
    check(sim.core, sim.now)
    sim.advance(10)
    assert client.error() == (14, "NO_SERVER")
    end = manager.one()
    assert (end.kind, end.call) == (pb.KIND_END, grant)
    manager.end(fault, code=14)
    assert len(client.take()) == 2
    check_empty(sim.core)


def test_a_call_that_waits_again_waits_once() -> None:
    sim = Sim(Limits(absence_grace_s=10))
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS, credits=1)
    for _ in range(4):
        client.open(CREATE)
    server.end(server.take()[-1].call)  # the second one left the queue
    client.take()
    server.die()  # and is back
    check(sim.core, sim.now)
    sim.advance(10)
    assert [e.status.code for e in client.take()] == [14, 14, 14]
    check_empty(sim.core)


def test_what_was_written_to_a_hung_port_is_not_changed_by_its_next_server() -> None:
    sim = Sim()
    hung, client = sim.attach("hung"), sim.attach("client")
    hung.export(EXECUTION, stall_ms=1000)
    hung.take()
    opened = pb.Envelope(call=1, kind=pb.KIND_OPEN, flags=UNARY, open=pb.Open(method=LOAD))
    client.send(opened)
    written = sim.last[hung.port][0]  # as it waits in the transport until the process reads
    before = written.SerializeToString()
    other = sim.attach("other")
    other.export(EXECUTION)
    sim.advance(2)
    assert [e.open.attempt for e in other.take() if e.kind == pb.KIND_OPEN] == [1]
    assert written.SerializeToString() == before


def test_a_waiting_call_lends_its_class_to_what_it_waits_for() -> None:
    sim = Sim()
    middle, back, client = sim.attach("middle"), sim.attach("back"), sim.attach("client")
    middle.export(EXECUTION, credits=1)
    back.export(BUFFERS, credits=1)
    middle.take(), back.take()
    for _ in range(3):
        client.open(CREATE)
    first = back.one().call
    client.open(LOAD, call_class=BATCH)
    running = middle.one().call
    middle.open(CREATE, parent=running)
    client.open(LOAD, call_class=INTERACTIVE)  # waits for `running`, which waits in `back`
    back.end(first)
    assert back.one().open.call_class == INTERACTIVE
    check(sim.core, sim.now)


def test_one_call_is_hurried_for_each_better_one_that_waits() -> None:
    sim = Sim()
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS, credits=4)
    server.take()
    for _ in range(3):
        client.open(CREATE, call_class=BATCH)
    for _ in range(3):
        client.open(CREATE, call_class=INTERACTIVE)
    running = [c.call_class for c in sim.core.ports[server.port].serving.values()]
    assert sorted(running) == [2, 2, 2, 4] and sim.core.scheduler.queued == 2
