"""One look at the kernel: what `llmos-ctl kernel top` shows, as plain values. No I/O in here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmos.clients.ctl.output import as_value

if TYPE_CHECKING:
    from llmos.api.kernel.v1 import admin_pb2

CLASSES = ("SYS", "INT", "NOR", "BAT")  # in the order of QueueInfo.by_class


@dataclass(frozen=True)
class Sample:
    """What Admin said at one moment; `at` is a monotonic clock, seconds."""

    at: float
    stats: admin_pb2.GetStatsResponse
    ports: admin_pb2.ListPortsResponse
    services: admin_pb2.ListServicesResponse
    tenants: admin_pb2.ListTenantsResponse


@dataclass(frozen=True)
class Rates:
    """What happened per second between two samples; 0 for what was not there before."""

    calls: float = 0.0
    failed: float = 0.0
    served: Mapping[int, float] = field(default_factory=dict)  # by port
    ended: Mapping[str, float] = field(default_factory=dict)  # by tenant
    cost: Mapping[str, float] = field(default_factory=dict)  # by tenant


def rates(before: Sample | None, now: Sample) -> Rates:
    """Return the rates since `before`; zeros when there is none or the kernel is another one."""
    if before is None or before.stats.kernel != now.stats.kernel or now.at <= before.at:
        return Rates()
    seconds = now.at - before.at

    def growth(old: Mapping[Any, float], new: Mapping[Any, float]) -> dict[Any, float]:
        return {k: max(0.0, v - old[k]) / seconds for k, v in new.items() if k in old}

    def ended(sample: Sample, ok: bool) -> int:
        return sum(n for code, n in sample.stats.ended.items() if (code == 0) is ok)

    def tenants(sample: Sample, what: str) -> dict[str, float]:
        return {t.limits.tenant: getattr(t, what) for t in sample.tenants.tenants}

    good, bad = (ended(now, ok) - ended(before, ok) for ok in (True, False))
    return Rates(
        calls=(good + bad) / seconds,
        failed=bad / seconds,
        served=growth(
            {p.port: p.served for p in before.ports.ports},
            {p.port: p.served for p in now.ports.ports},
        ),
        ended=growth(tenants(before, "ended"), tenants(now, "ended")),
        cost=growth(tenants(before, "cost"), tenants(now, "cost")),
    )


def queues(sample: Sample) -> list[tuple[str, admin_pb2.QueueInfo]]:
    """Return (service, queue) of what waits, the longest first."""
    found = [(s.service, q) for s in sample.services.services for q in s.queues]
    return sorted(found, key=lambda pair: -pair[1].queued)


def ports(sample: Sample, rate: Rates) -> list[admin_pb2.PortInfo]:
    """Return the ports, those in trouble first, then the busiest."""
    return sorted(
        sample.ports.ports,
        key=lambda p: (not p.stalled, not p.draining, -rate.served.get(p.port, 0), -p.served),
    )


def services_of(port: admin_pb2.PortInfo) -> str:
    """Return what a port serves, e.g. `Execution[smollm2,smollm2@1]`, what all serve last."""
    exports = sorted(port.exports, key=lambda e: e.service.endswith(".Introspection"))
    return " ".join(map(_export, exports))


def _export(export: admin_pb2.ExportInfo) -> str:
    short = export.service.rsplit(".", 1)[-1]
    keys = ",".join(key for key in export.keys if key)
    return f"{short}[{keys}]" if keys else short


def flags_of(port: admin_pb2.PortInfo) -> str:
    """Return the states of a port that are worth a word."""
    flags = (("stalled", port.stalled), ("draining", port.draining))
    return " ".join(name for name, on in flags if on)


def value(sample: Sample, rate: Rates) -> dict[str, Any]:
    """Return a frame as JSON values."""

    def with_rate(rows: Iterable[Any], **more: Mapping[Any, float]) -> list[dict[str, Any]]:
        listed = []
        for row in rows:
            key = row.port if hasattr(row, "port") else row.limits.tenant
            listed.append({**as_value(row), **{k: v.get(key, 0.0) for k, v in more.items()}})
        return listed

    return {
        "stats": as_value(sample.stats),
        "calls_per_s": rate.calls,
        "failed_per_s": rate.failed,
        "ports": with_rate(ports(sample, rate), served_per_s=rate.served),
        "queues": [{"service": s, **as_value(q)} for s, q in queues(sample)],
        "tenants": with_rate(sample.tenants.tenants, ended_per_s=rate.ended, cost_per_s=rate.cost),
    }
