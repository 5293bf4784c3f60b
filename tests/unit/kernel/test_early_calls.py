"""Calls that reach a kernel before the servers that describe them."""

from __future__ import annotations

from kernel_sim import EXECUTION, GENERATE, Sim

from llmos.api.execution.v1 import execution_pb2
from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.limits import Limits

REQUEST = execution_pb2.GenerateRequest(model="m", prompt="p").SerializeToString()


def test_an_early_call_finds_its_key_when_its_method_becomes_known() -> None:
    sim = Sim()
    client = sim.attach("client")
    client.open(GENERATE, REQUEST)
    manager = sim.attach("execution")
    manager.export(EXECUTION, fault_handler=True)
    assert manager.take()[-1].open.method == "/llmos.api.kernel.v1.Pager/Fault"
    worker = sim.attach("worker")
    worker.export(EXECUTION, ("m",))
    opened = worker.take()[-1]
    assert (opened.kind, opened.open.key) == (pb.KIND_OPEN, "m")
    worker.die()
    again = sim.attach("worker")
    again.export(EXECUTION, ("m",))
    assert again.take()[-1].open.attempt == 1  # it is known to be idempotent, too


def test_an_early_call_of_a_method_that_is_none_is_refused_when_that_is_known() -> None:
    sim = Sim()
    client = sim.attach("client")
    client.open(f"/{EXECUTION}/Nope")
    manager = sim.attach("execution")
    manager.export(EXECUTION, fault_handler=True)
    assert client.error() == (12, "NO_SUCH_METHOD")


def test_an_early_call_for_a_cold_key_waits_for_the_fault_handler() -> None:
    sim = Sim(Limits(startup_grace_s=5))
    worker, client = sim.attach("worker"), sim.attach("client")
    worker.export(EXECUTION, ("other",))
    client.open(GENERATE, REQUEST)
    assert not client.take()
    manager = sim.attach("execution")
    manager.export(EXECUTION, fault_handler=True)
    assert manager.take()[-1].open.method == "/llmos.api.kernel.v1.Pager/Fault"


def test_an_early_call_for_a_key_that_nobody_has_is_told_so_after_the_start() -> None:
    sim = Sim(Limits(startup_grace_s=5))
    worker, client = sim.attach("worker"), sim.attach("client")
    worker.export(EXECUTION, ("other",))
    client.open(GENERATE, REQUEST)
    sim.advance(4.9)
    assert not client.take()
    sim.advance(0.2)
    assert client.error() == (5, "NO_SUCH_KEY")
