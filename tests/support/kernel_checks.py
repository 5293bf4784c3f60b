"""What tests of the kernel's core share besides the simulation."""

from __future__ import annotations

from kernel_sim import Sim

from llmos.api.execution.v1 import execution_pb2

PAGER_FAULT = "/llmos.api.kernel.v1.Pager/Fault"


def generate(model: str) -> bytes:
    return execution_pb2.GenerateRequest(model=model, prompt="p").SerializeToString()


def empty(sim: Sim) -> None:
    """Assert that nothing of any call is left."""
    core = sim.core
    assert not core.calls.table
    assert core.scheduler.queued == 0
    for port in core.ports.values():
        assert not port.opened and not port.serving
        assert all(e.running == 0 for e in port.exports.values())
    queues = [q for s in core.scheduler.services.values() for q in s.queues.values()]
    assert not any(q.count or q.fault for q in queues)
    assert all(t.open == 0 for t in core.scheduler.tenants.values())
