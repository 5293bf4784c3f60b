"""The kernel's state as Admin messages. Reads, never changes."""

from __future__ import annotations

from llmos.api.kernel.v1 import admin_pb2 as admin
from llmos.kernel.core.core import Core
from llmos.kernel.core.state import Call, PortState
from llmos.lib.values import like


def port_info(port: PortState, now: float) -> admin.PortInfo:
    """Return one port."""
    return like(
        admin.PortInfo,
        port,
        port=port.id,
        pid=port.hello.pid if port.hello is not None else 0,
        attached_s=now - port.attached_at,
        exports=[like(admin.ExportInfo, e) for e in port.exports.values() if e.keys],
        running=len(port.serving),
        opened=len(port.opened),
    )


def ports(core: Core, now: float) -> list[admin.PortInfo]:
    """Return the attached processes by number."""
    return [port_info(p, now) for _, p in sorted(core.ports.items()) if p.hello is not None]


def services(core: Core, now: float) -> list[admin.ServiceInfo]:
    """Return the services by name."""
    return [
        admin.ServiceInfo(
            service=s.name,
            ports=sorted(s.exports),
            queues=[
                admin.QueueInfo(
                    key=q.key,
                    queued=q.count,
                    faulting=q.fault is not None,
                    oldest_s=max((now - c.queued_at for c in q.calls()), default=0.0),
                    by_class=[waiting.count for waiting in q.classes.values()],
                )
                for q in s.queues.values()
                if q.count or q.fault is not None
            ],
            methods=sorted(s.methods),
        )
        for _, s in sorted(core.scheduler.services.items())
        if s.seen
    ]


def call_info(call: Call, core: Core, now: float) -> admin.CallInfo:
    """Return one call."""
    opener = call.opener
    return like(
        admin.CallInfo,
        call,
        id=f"{call.id:x}",
        method=call.path,
        caller=(call.caller if opener is None or opener.own else opener.name) or "kernel",
        server=call.export.port.id if call.export is not None else 0,
        age_s=now - call.opened_at,
        remaining_s=-1.0 if call.deadline is None else max(0.0, call.deadline - now),
        attempt=call.attempts,
        parent=f"{call.parent.id:x}" if call.parent is not None else "",
    )


def calls(core: Core, service: str, limit: int, now: float) -> admin.ListCallsResponse:
    """Return at most `limit` calls, oldest first."""
    listed = [c for c in core.calls.table.values() if service in ("", c.service.name)]
    return admin.ListCallsResponse(
        calls=[call_info(c, core, now) for c in listed[:limit]], total=len(listed)
    )


def stats(core: Core, started: float, pid: int, now: float) -> admin.GetStatsResponse:
    """Return the counters."""
    queued = core.scheduler.queued
    return like(
        admin.GetStatsResponse,
        core.stats,
        kernel=core.kernel,
        uptime_s=now - started,
        queued=queued,
        running=len(core.calls.table) - queued,
        ports=sum(p.hello is not None for p in core.ports.values()),
        pid=pid,
    )


def tenants(core: Core) -> admin.ListTenantsResponse:
    """Return the tenants by name, and the kernel's limits."""
    return admin.ListTenantsResponse(
        tenants=[
            like(admin.TenantInfo, t, limits=like(admin.TenantLimits, t.limits, tenant=t.name))
            for _, t in sorted(core.scheduler.tenants.items())
        ],
        limits=like(admin.KernelLimits, core.limits),
    )
