"""One look at the whole system, as plain values: what `llmos-ctl top` shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmos.clients.ctl import frame
from llmos.clients.ctl.output import as_value

if TYPE_CHECKING:
    from llmos.clients.ctl.session import Session

_LIMIT_S = 5.0
_CALLS = 200
_LATE_S = 2.0  # of what a server is asked that may be away: the rest is shown without it


@dataclass
class Look:
    """What was seen. `trouble` says of each part that is missing why it is."""

    sample: frame.Sample
    rate: frame.Rates
    processes: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    devices: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    trouble: dict[str, str] = field(default_factory=dict)

    def rows(self, section: str) -> list[dict[str, Any]]:
        """Return the rows of a table by its name."""
        if section == "servers":
            return self.servers()
        if section == "calls":  # what models are asked comes first, the OS's own watches last
            return sorted(self.calls, key=lambda call: (not call["key"], -call["age_s"]))
        return self.models if section == "models" else self.jobs

    def servers(self) -> list[dict[str, Any]]:
        """Return the processes, each with its port and its rate, if it has one."""
        own_pid = {"kernel": self.sample.stats.pid}  # the kernel's own port names no process
        pids = ((port.pid or own_pid.get(port.name, 0), port) for port in self.sample.ports.ports)
        by_pid = {pid: port for pid, port in pids if pid}
        rows = []
        for process in self.processes:
            port = by_pid.pop(process["pid"], None)
            rows.append({**process, **self._on_port(port)})
        for pid, port in by_pid.items():  # attached by others than this init
            name, up = port.name, port.attached_s
            own = {"name": name, "pid": pid, "state": "attached", "restarts": 0, "rss_bytes": 0}
            rows.append({**own, "uptime_s": up, "managed": False, **self._on_port(port)})
        return rows

    def _on_port(self, port: Any) -> dict[str, Any]:
        if port is None:
            return {"port": 0, "running": 0, "served_per_s": 0.0, "flags": ""}
        rate = self.rate.served.get(port.port, 0.0)
        flags = frame.flags_of(port)
        return {"port": port.port, "running": port.running, "served_per_s": rate, "flags": flags}


def value(look: Look) -> dict[str, Any]:
    """Return a look as JSON values."""
    return {
        "stats": as_value(look.sample.stats),
        "calls_per_s": look.rate.calls,
        "failed_per_s": look.rate.failed,
        "queues": [{"service": s, **as_value(q)} for s, q in frame.queues(look.sample)],
        "servers": look.servers(),
        "models": look.models,
        "calls": look.calls,
        "devices": look.devices,
        "jobs": look.jobs,
        "trouble": look.trouble,
    }


def looker(session: Session) -> Callable[[Look | None], Look]:
    """Return what looks; given the look before, it has rates."""
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc
    from llmos.api.init.v1 import init_pb2, init_pb2_grpc
    from llmos.api.kernel.v1 import admin_pb2 as pb
    from llmos.api.kernel.v1 import admin_pb2_grpc
    from llmos.api.memory.v1 import residency_pb2, residency_pb2_grpc
    from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc

    kernel = session.kernel(admin_pb2_grpc.AdminStub)
    limit, late = session.limit(_LIMIT_S), session.limit(_LATE_S)
    # Through the kernel, which init is attached to as all others: so it works from afar, too.
    parts: dict[str, Callable[[], Any]] = {
        "processes": lambda: (
            session.kernel(init_pb2_grpc.InitStub)
            .ListProcesses(init_pb2.ListProcessesRequest(), timeout=late)
            .processes
        ),
        "models": lambda: (
            session.kernel(execution_pb2_grpc.ExecutionStub)
            .ListModels(execution_pb2.ListModelsRequest(), timeout=late)
            .models
        ),
        "calls": lambda: (
            kernel.ListCalls(pb.ListCallsRequest(page_size=_CALLS), timeout=limit).calls
        ),
        "devices": lambda: (
            session.kernel(residency_pb2_grpc.ResidencyStub)
            .ListDevices(residency_pb2.ListDevicesRequest(), timeout=late)
            .devices
        ),
        "jobs": lambda: (
            session.kernel(jobs_pb2_grpc.JobsStub)
            .ListJobs(jobs_pb2.ListJobsRequest(), timeout=late)
            .jobs
        ),
    }

    def look(before: Look | None) -> Look:
        sample = frame.Sample(
            at=time.monotonic(),
            stats=kernel.GetStats(pb.GetStatsRequest(), timeout=limit),
            ports=kernel.ListPorts(pb.ListPortsRequest(), timeout=limit),
            services=kernel.ListServices(pb.ListServicesRequest(), timeout=limit),
            tenants=kernel.ListTenants(pb.ListTenantsRequest(), timeout=limit),
        )
        seen = Look(sample, frame.rates(before.sample if before else None, sample))
        _fill(seen, parts)
        return seen

    return look


def _fill(look: Look, parts: dict[str, Callable[[], Any]]) -> None:
    """Add the parts of other servers; one that does not answer is missing, and said to be."""
    import grpc

    from llmos.lib.rpc import from_rpc_error

    for name, ask in parts.items():
        try:
            setattr(look, name, [as_value(row) for row in ask()])
        except grpc.RpcError as exc:
            look.trouble[name] = from_rpc_error(exc).message
