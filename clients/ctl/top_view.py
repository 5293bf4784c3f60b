"""A frame of `llmos-ctl kernel top`, drawn with rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmos.api.kernel.v1 import admin_pb2
from llmos.clients.ctl import frame
from llmos.clients.ctl.frame import Rates, Sample
from llmos.clients.ctl.output import duration
from llmos.lib.errors import NAMES

_ALL = 1_000  # lines, where there is no screen to fit into
_AROUND = 12  # lines that are not rows: the head, titles, columns, and space between


def view(sample: Sample, rate: Rates, height: int = _ALL, trouble: str = "") -> RenderableType:
    """Return a frame of about `height` lines; `trouble` is why it is not of now."""
    queues, tenants = frame.queues(sample), list(sample.tenants.tenants)
    ports = frame.ports(sample, rate)
    room = max(9, height - _AROUND)
    queues_shown = queues[: max(2, room // 3)]
    tenants_shown = tenants[: max(2, room // 4)]
    ports_shown = ports[: room - max(1, len(queues_shown)) - len(tenants_shown)]
    return Group(
        _head(sample, rate, trouble),
        _title("PORTS", len(ports_shown), len(ports)),
        _ports(ports_shown, rate),
        _title("QUEUES", len(queues_shown), len(queues)),
        _queues(queues_shown),
        _title("TENANTS", len(tenants_shown), len(tenants)),
        _tenants(tenants_shown, rate),
    )


def _head(sample: Sample, rate: Rates, trouble: str) -> Text:
    stats = sample.stats
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append("kernel ", "bold").append(stats.kernel[:8])
    head.append(f"  pid {stats.pid}  up {duration(stats.uptime_s)}  ports {stats.ports}\n")
    head.append(f"{rate.calls:,.1f} calls/s", "bold green")
    head.append(f"  failed {rate.failed:,.1f}/s", "bold red" if rate.failed else "")
    head.append(f"  running {stats.running}  queued {stats.queued}  opened {stats.opened:,}")
    head.append(f"  redispatched {stats.redispatched}  faults {stats.faults}\n")
    if trouble:
        return head.append(f"NOT OF NOW: {trouble}", "bold red")
    bad = sorted((NAMES.get(code, str(code)), n) for code, n in stats.ended.items() if code)
    ended = ", ".join(f"{name} {count:,}" for name, count in bad)
    return head.append(f"ended otherwise than OK: {ended or 'none'}", "dim")


def _title(name: str, shown: int, there: int) -> Text:
    title = Text(f"\n{name}", "bold")
    return title.append(f"  {shown} of {there}", "dim") if shown < there else title


def _ports(ports: Sequence[admin_pb2.PortInfo], rate: Rates) -> Table:
    table = _table(
        "PORT", "PID", "FOR", "RUN", "SERVED/S", "SERVED", "FAILED", left=("NAME", "SERVICES")
    )
    for port in ports:
        flags = frame.flags_of(port)
        table.add_row(
            Text(str(port.port)),
            Text(str(port.pid or "-")),
            Text(duration(port.attached_s)),
            Text(str(port.running)),
            Text(f"{rate.served.get(port.port, 0.0):,.1f}"),
            Text(f"{port.served:,}"),
            Text(f"{port.failed:,}"),
            Text(port.name),
            Text(f"{flags.upper()} {frame.services_of(port)}".strip()),
            style="bold red" if port.stalled else "yellow" if port.draining else "",
        )
    return table


def _queues(queues: Sequence[tuple[str, admin_pb2.QueueInfo]]) -> RenderableType:
    if not queues:
        return Text("nothing waits", "dim")
    table = _table("WAITING", *frame.CLASSES, "OLDEST", left=("KEY", "SERVICE"))
    for service, queue in queues:
        classes = [*queue.by_class, 0, 0, 0, 0][: len(frame.CLASSES)]
        table.add_row(
            Text(str(queue.queued)),
            *(Text(str(count), "" if count else "dim") for count in classes),
            Text(duration(queue.oldest_s)),
            Text((queue.key or "-") + (" (loading)" if queue.faulting else "")),
            Text(service.rsplit(".", 1)[-1]),
        )
    return table


def _tenants(tenants: Sequence[admin_pb2.TenantInfo], rate: Rates) -> RenderableType:
    if not tenants:
        return Text("nobody has called yet", "dim")
    table = _table("OPEN", "ENDED/S", "COST/S", "ENDED", "COST", "WEIGHT", left=("TENANT",))
    for tenant in tenants:
        name = tenant.limits.tenant
        table.add_row(
            Text(str(tenant.open)),
            Text(f"{rate.ended.get(name, 0.0):,.1f}"),
            Text(f"{rate.cost.get(name, 0.0):,.3g}"),
            Text(f"{tenant.ended:,}"),
            Text(f"{tenant.cost:,.4g}"),
            Text(f"{tenant.limits.weight:g}"),
            Text(name),
        )
    return table


def _table(*right: str, left: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1), expand=True)
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    for column in left:  # the last one gets, and gives up, what room there is
        ratio = 1 if column == left[-1] else None
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=ratio)
    return table
