"""The kernel's pure core: routing, keys, credits, classes, faults, bounds."""

from __future__ import annotations

from kernel_checks import PAGER_FAULT, empty, generate
from kernel_sim import BUFFERS, CREATE, EXECUTION, GENERATE, UNARY, Sim

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.events import CancelRequested
from llmos.kernel.core.limits import Limits


def test_a_call_reaches_its_server_and_the_reply_its_client() -> None:
    sim = Sim()
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS)
    server.take()
    call = client.open(CREATE, b"request", timeout_s=2)
    opened = server.one()
    assert (opened.kind, opened.payload, opened.flags) == (pb.KIND_OPEN, b"request", UNARY)
    assert opened.call % 2 == 0
    assert opened.open.caller == "instance-2"
    assert opened.open.caller_host == "host"
    assert opened.open.tenant == "local"
    assert opened.open.call_class == pb.CALL_CLASS_NORMAL
    assert 0 < opened.open.timeout_us <= 2_000_000
    server.end(opened.call, b"reply")
    end = client.one()
    assert (end.kind, end.call, end.payload, end.status.code) == (pb.KIND_END, call, b"reply", 0)
    empty(sim)


def test_status_and_trailers_pass_unchanged() -> None:
    sim = Sim()
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS)
    server.take()
    client.open()
    call = server.one().call
    trailers = [pb.Metadatum(key="x-bin", value=b"\x00\xff")]
    status = pb.Status(code=5, message="gone", trailers=trailers)
    server.send(pb.Envelope(call=call, kind=pb.KIND_END, status=status))
    assert client.one().status == status


def test_calls_go_to_the_port_with_the_key() -> None:
    sim = Sim()
    a, b, client = sim.attach("a"), sim.attach("b"), sim.attach("client")
    a.export(EXECUTION, ("llama", "llama@1"))
    b.export(EXECUTION, ("qwen",))
    a.take(), b.take()
    client.open(GENERATE, generate("qwen"))
    assert b.one().open.key == "qwen"
    assert not a.take()
    client.open(GENERATE, b"", flags=0, key="llama@1")
    assert a.one().open.key == "llama@1"


def test_the_port_with_fewest_running_calls_is_chosen() -> None:
    sim = Sim()
    a, b, client = sim.attach("a"), sim.attach("b"), sim.attach("client")
    a.export(BUFFERS)
    b.export(BUFFERS)
    a.take(), b.take()
    for _ in range(6):
        client.open()
    assert len(a.take()) == len(b.take()) == 3


def test_credits_bound_what_runs_and_come_back() -> None:
    sim = Sim()
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS, credits=2)
    server.take()
    for _ in range(5):
        client.open()
    running = [e.call for e in server.take()]
    assert len(running) == 2 and sim.core.scheduler.queued == 3
    server.end(running[0])
    assert len(server.take()) == 1
    server.send(pb.Envelope(kind=pb.KIND_CREDIT, credit=pb.Credit(service=BUFFERS, credits=4)))
    assert len(server.take()) == 2 and sim.core.scheduler.queued == 0


def test_a_cancelled_call_holds_its_credit_until_its_work_has_stopped() -> None:
    sim = Sim()
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS, credits=1)
    server.take()
    first = client.open()
    client.open()
    running = server.one().call
    client.cancel(first)
    assert server.one().kind == pb.KIND_CANCEL
    server.end(running, code=1)
    assert server.one().kind == pb.KIND_OPEN
    assert not client.take()  # the opener has given up: nothing is passed on


def test_higher_classes_go_first() -> None:
    sim = Sim()
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS, credits=1)
    server.take()
    client.open()
    running = server.one().call
    for name in (pb.CALL_CLASS_BATCH, 0, pb.CALL_CLASS_INTERACTIVE, pb.CALL_CLASS_SYSTEM):
        client.open(call_class=name)
    order = []
    for _ in range(4):
        server.end(running)
        opened = server.one()
        running = opened.call
        order.append(opened.open.call_class)
    assert order == [1, 2, 3, 4]


def test_a_cold_key_is_faulted_once_and_all_waiting_calls_run() -> None:
    sim = Sim()
    manager, client = sim.attach("execution"), sim.attach("client")
    manager.export(EXECUTION, fault_handler=True)
    manager.take()
    for _ in range(10):
        client.open(GENERATE, generate("m"))
    fault = manager.one()
    assert fault.open.method == PAGER_FAULT
    worker = sim.attach("worker")
    worker.export(EXECUTION, ("m",))
    assert len([e for e in worker.take() if e.kind == pb.KIND_OPEN]) == 10
    manager.end(fault.call)
    assert not manager.take()
    assert sim.core.stats.faults == 1


def test_a_failed_fault_ends_the_waiting_calls_with_its_status() -> None:
    sim = Sim()
    manager, client = sim.attach("execution"), sim.attach("client")
    manager.export(EXECUTION, fault_handler=True)
    manager.take()
    client.open(GENERATE, generate("nope"))
    manager.end(manager.one().call, code=5)
    assert client.one().status.code == 5
    empty(sim)


def test_a_fault_that_changes_nothing_is_not_repeated_for_ever() -> None:
    sim = Sim()
    manager, client = sim.attach("execution"), sim.attach("client")
    manager.export(EXECUTION, fault_handler=True)
    manager.take()
    client.open(GENERATE, generate("m"))
    for _ in range(sim.core.limits.max_fault_tries):
        manager.end(manager.one().call)
    assert client.error() == (14, "FAULT_WITHOUT_EFFECT")
    empty(sim)


def test_an_operator_can_cancel_a_fault() -> None:
    sim = Sim()
    manager, client = sim.attach("execution"), sim.attach("client")
    manager.export(EXECUTION, fault_handler=True)
    manager.take()
    client.open(GENERATE, generate("m"))
    fault = manager.one().call
    fault_id = max(sim.core.calls.table)
    sim.feed(CancelRequested(fault_id))
    assert client.error() == (1, "CANCELLED_BY_OPERATOR")
    manager.end(fault, code=1)
    empty(sim)


def test_a_deadline_ends_the_call_and_its_work() -> None:
    sim = Sim()
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS, credits=1)
    server.take()
    client.open(timeout_s=1)
    client.open(timeout_s=2)
    running = server.one().call
    sim.advance(1.001)
    assert client.error() == (4, "DEADLINE")
    assert server.one().kind == pb.KIND_CANCEL
    sim.advance(1)
    assert client.error() == (4, "DEADLINE")  # this one while it waited
    server.end(running, code=1)
    empty(sim)


def test_unknown_services_methods_and_keys() -> None:
    sim = Sim(Limits(startup_grace_s=0))
    server, client = sim.attach("s"), sim.attach("client")
    server.export(EXECUTION, ("",))
    server.take()
    client.open("/no.Such/Method")
    assert client.error() == (12, "NO_SUCH_SERVICE")
    client.open(f"/{EXECUTION}/Nope")
    assert client.error() == (12, "NO_SUCH_METHOD")
    client.open("garbage")
    assert client.error() == (12, "NO_SUCH_METHOD")
    client.open(GENERATE, generate("m"))
    assert client.error() == (5, "NO_SUCH_KEY")
    client.open(GENERATE, b"\x0a\xff")
    assert client.error() == (3, "BAD_MESSAGE")
    assert list(sim.core.scheduler.services) == [EXECUTION]
    empty(sim)


def test_queues_are_bounded() -> None:
    sim = Sim(Limits(max_queued_per_key=2))
    server, client = sim.attach("memory"), sim.attach("client")
    server.export(BUFFERS, credits=1)
    for _ in range(3):
        client.open()
    assert not client.take()
    client.open()
    assert client.error() == (8, "QUEUE_FULL")


def test_large_requests_are_kept_only_up_to_a_bound() -> None:
    sim = Sim(Limits(max_kept_bytes=100))
    server, client = sim.attach("s"), sim.attach("client")
    server.export(BUFFERS)
    server.take()
    call = client.open(CREATE, b"x" * 60, flags=pb.FLAG_MESSAGE | pb.FLAG_MORE)
    client.data(call, b"y" * 60, flags=UNARY)
    assert [len(e.payload) for e in server.take()] == [60, 60]
    server.die()
    assert client.error() == (14, "SERVER_DIED")
    empty(sim)


def test_an_export_without_keys_is_withdrawn() -> None:
    sim = Sim(Limits(startup_grace_s=0))
    server, client = sim.attach("s"), sim.attach("client")
    server.export(BUFFERS)
    server.export(BUFFERS, ())
    server.take()
    client.open()
    assert not server.take()
    sim.advance(sim.core.limits.absence_grace_s)
    assert client.error() == (14, "NO_SERVER")


def test_bad_descriptors_are_refused_and_change_nothing() -> None:
    sim = Sim()
    server = sim.attach("s")
    export = pb.Export(service="a.B", keys=[""], files=[b"\xff\xff"])
    server.send(pb.Envelope(call=3, kind=pb.KIND_EXPORT, export=export))
    answer = server.one()
    assert (answer.kind, answer.call, answer.status.code) == (pb.KIND_EXPORTED, 3, 3)
    assert "a.B" not in sim.core.scheduler.services
