"""The kernel's state as Admin messages. Reads, never changes."""

from __future__ import annotations

from collections.abc import Iterable

from llmos.api.kernel.v1 import admin_pb2 as admin
from llmos.kernel.core.core import Core
from llmos.kernel.core.state import Call, PortState


def port_info(port: PortState, now: float) -> admin.PortInfo:
    """Return one port."""
    hello = port.hello
    assert hello is not None
    exports = list(port.exports.values())
    return admin.PortInfo(
        port=port.id,
        name=hello.name,
        instance=hello.instance,
        pid=hello.pid,
        host=hello.host,
        attached_s=now - port.attached_at,
        exports=[
            admin.ExportInfo(
                service=e.service,
                keys=e.keys,
                credits=e.credits,
                running=e.running,
                fault_handler=e.fault_handler,
            )
            for e in exports
            if e.keys
        ],
        running=len(port.serving),
        opened=len(port.opened),
        served=port.served,
        failed=port.failed,
        draining=port.draining,
        stalled=port.stalled,
        latency=port.latency,
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
    return admin.CallInfo(
        id=f"{call.id:x}",
        method=call.path,
        key=call.key,
        call_class=call.call_class,  # type: ignore[arg-type]
        tenant=call.tenant,
        caller=(call.caller if opener is None or opener.own else opener.name) or "kernel",
        server=call.export.port.id if call.export is not None else 0,
        age_s=now - call.opened_at,
        remaining_s=-1.0 if call.deadline is None else max(0.0, call.deadline - now),
        attempt=call.attempts,
        parent=f"{call.parent.id:x}" if call.parent is not None else "",
    )


def calls(core: Core, service: str, limit: int, now: float) -> admin.ListCallsResponse:
    """Return at most `limit` calls, oldest first."""
    found: Iterable[Call] = core.calls.table.values()
    if service:
        found = [c for c in found if c.service is not None and c.service.name == service]
    listed = list(found)
    return admin.ListCallsResponse(
        calls=[call_info(c, core, now) for c in listed[:limit]], total=len(listed)
    )


def stats(core: Core, started: float, pid: int, now: float) -> admin.GetStatsResponse:
    """Return the counters."""
    s = core.stats
    queued = core.scheduler.queued
    return admin.GetStatsResponse(
        kernel=core.kernel,
        uptime_s=now - started,
        opened=s.opened,
        ended=s.ended,
        redispatched=s.redispatched,
        faults=s.faults,
        envelopes=s.envelopes,
        frames=s.frames,
        queued=queued,
        running=len(core.calls.table) - queued,
        ports=sum(p.hello is not None for p in core.ports.values()),
        pid=pid,
    )


def tenants(core: Core) -> admin.ListTenantsResponse:
    """Return the tenants by name, and the kernel's limits."""
    limits = core.limits
    return admin.ListTenantsResponse(
        tenants=[
            admin.TenantInfo(
                limits=admin.TenantLimits(
                    tenant=t.name,
                    weight=t.limits.weight,
                    max_calls=t.limits.max_calls,
                    calls_per_s=t.limits.calls_per_s,
                    cost_per_s=t.limits.cost_per_s,
                ),
                open=t.open,
                ended=t.ended,
                cost=t.cost,
            )
            for _, t in sorted(core.scheduler.tenants.table.items())
        ],
        limits=admin.KernelLimits(
            max_queued=limits.max_queued,
            max_queued_per_key=limits.max_queued_per_key,
            ageing_s=limits.ageing_s,
            absence_grace_s=limits.absence_grace_s,
            max_attempts=limits.max_attempts,
        ),
    )
