"""A key that is loaded and unloaded again and again under load is no fault without effect."""

from __future__ import annotations

from kernel_sim import EXECUTION, GENERATE, Sim

from llmos.api.execution.v1 import execution_pb2
from llmos.kernel.core.events import DrainRequested


def test_faults_that_made_the_key_hot_do_not_count() -> None:
    sim = Sim()
    manager, client = sim.attach("execution"), sim.attach("client")
    manager.export(EXECUTION, fault_handler=True)
    manager.take()
    request = execution_pb2.GenerateRequest(model="m", prompt="p").SerializeToString()
    client.open(GENERATE, request)
    for i in range(sim.core.limits.max_fault_tries + 2):
        fault = manager.one()
        worker = sim.attach(f"worker{i}")
        worker.export(EXECUTION, keys=("m",), credits=1)
        running = worker.take()[-1].call
        client.open(GENERATE, request)  # waits: the worker has one credit
        manager.end(fault.call)
        sim.feed(DrainRequested(worker.port))  # so the next fault comes while a call waits
        worker.end(running)
        assert client.take()[-1].status.code == 0
        worker.die()
