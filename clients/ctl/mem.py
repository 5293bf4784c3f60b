"""Memory: devices, buffers, and the models that hold room, live."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl import mem_prefixes, mem_sessions
from llmos.clients.ctl.output import as_value, size, when
from llmos.clients.ctl.session import QUICK_S, Session, command

if TYPE_CHECKING:
    from llmos.api.memory.v1 import residency_pb2

app = typer.Typer(
    help="What holds memory: devices, models, buffers, prefixes, sessions.", no_args_is_help=True
)
app.add_typer(mem_prefixes.app, name="prefixes")
app.add_typer(mem_sessions.app, name="sessions")
Watch = Annotated[
    float,
    typer.Option("--watch", "-w", min=0, max=3600, help="Show it again after so many seconds."),
]
Table = tuple[list[str], list[list[str]], Any]
_CLASSES = {1: "system", 2: "interactive", 3: "normal", 4: "batch"}


@command(app, examples=["llmos-ctl mem top", "llmos-ctl mem top --once -o json"])
def top(
    session: Session,
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
) -> None:
    """Watch devices and the models on them, first to be evicted first; Ctrl-C ends it."""
    _live(session, lambda: [_devices(session), _models(session)], 0 if once else interval)


@command(app, examples=["llmos-ctl mem models", "llmos-ctl mem models -w 1"])
def models(session: Session, watch: Watch = 0) -> None:
    """List the models that hold memory, what they use, and in which order they would go."""
    _live(session, lambda: [_models(session)], watch)


@command(app, examples=["llmos-ctl mem tenants -o json"])
def tenants(session: Session, watch: Watch = 0) -> None:
    """Sum up what each tenant's models and buffers take."""
    _live(session, lambda: [_tenants(session)], watch)


@command(app, examples=["llmos-ctl mem buffers", "llmos-ctl mem buffers -o json"])
def buffers(session: Session, watch: Watch = 0) -> None:
    """List shared-memory buffers, oldest first."""
    _live(session, lambda: [_buffers(session)], watch)


@command(app, examples=["llmos-ctl mem history", "llmos-ctl mem history -n 10 -o json"])
def history(
    session: Session,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=200, help="At most so many.")
    ] = 30,
    watch: Watch = 0,
) -> None:
    """List which models came and went lately, newest first, and which had to go for whom."""
    _live(session, lambda: [_history(session, lines)], watch)


def _live(session: Session, look: Callable[[], list[Table]], interval: float) -> None:
    """Print once, or again and again: on a terminal in place, as JSON one line per look."""
    if not interval:
        for columns, rows, value in look():
            session.out.rows(columns, rows, value)
        return
    with contextlib.suppress(KeyboardInterrupt):  # that is how people leave
        if session.json or not sys.stdout.isatty():
            while True:
                print(json.dumps([value for _, _, value in look()]), flush=True)
                time.sleep(interval)
        from rich.console import Console, Group
        from rich.live import Live

        console = Console(highlight=False)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(Group(*[_table(*found[:2]) for found in look()]), refresh=True)
                time.sleep(interval)


def _table(columns: list[str], rows: list[list[str]]) -> Any:
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _devices(session: Session) -> Table:
    from llmos.api.memory.v1 import residency_pb2, residency_pb2_grpc

    stub = session.kernel(residency_pb2_grpc.ResidencyStub)
    request = residency_pb2.ListDevicesRequest()
    devices = stub.ListDevices(request, timeout=session.limit(QUICK_S)).devices
    rows = [
        [
            d.name,
            *map(size, (d.budget_bytes, d.granted_bytes, d.used_bytes)),
            *map(size, (d.waiting_bytes, d.free_bytes, d.total_bytes)),
            d.description,
        ]
        for d in devices
    ]
    columns = ["DEVICE", "BUDGET", "GRANTED", "USED", "WAITING", "FREE", "TOTAL", "WHAT"]
    return columns, rows, [as_value(d) for d in devices]


def _grants(session: Session) -> list[residency_pb2.Grant]:
    from llmos.api.memory.v1 import residency_pb2, residency_pb2_grpc

    stub = session.kernel(residency_pb2_grpc.ResidencyStub)
    request = residency_pb2.ListGrantsRequest()
    return list(stub.ListGrants(request, timeout=session.limit(QUICK_S)).grants)


def _models(session: Session) -> Table:
    grants = sorted(_grants(session), key=lambda g: (g.device, g.order or 1 << 30, g.id))
    rows = [
        [
            g.id,
            g.device,
            size(g.bytes),
            size(g.used_bytes),
            _state(g),
            str(g.order or "-"),
            str(g.served),
            f"{g.reload_s:.2f} s",
            _CLASSES.get(g.rank, "normal"),
            g.tenant,
        ]
        for g in grants
    ]
    columns = ["MODEL", "DEVICE", "GRANTED", "USED", "STATE", "GOES", "SERVED", "RELOAD", "CLASS"]
    return [*columns, "TENANT"], rows, [as_value(g) for g in grants]


def _history(session: Session, lines: int) -> Table:
    from llmos.api.memory.v1 import residency_pb2, residency_pb2_grpc

    stub = session.kernel(residency_pb2_grpc.ResidencyStub)
    request = residency_pb2.ListChangesRequest(limit=lines)
    changes = stub.ListChanges(request, timeout=session.limit(QUICK_S)).changes
    rows = [
        [
            when(c.unix_s),
            residency_pb2.ChangeKind.Name(c.kind).removeprefix("CHANGE_KIND_").lower(),
            c.id,
            c.device,
            size(c.bytes),
            c.wanted_by or "-",
            c.tenant,
        ]
        for c in changes
    ]
    columns = ["WHEN", "WHAT", "MODEL", "DEVICE", "GRANTED", "FOR", "TENANT"]
    return columns, rows, [as_value(c) for c in changes]


def _state(grant: residency_pb2.Grant) -> str:
    words = [
        *(["pinned"] if grant.pinned else []),
        *([f"{grant.leases} leases"] if grant.leases else []),
        "moving" if grant.moving else "busy" if grant.busy else f"idle {grant.idle_s:.0f} s",
    ]
    return ", ".join(words)


def _buffer_list(session: Session) -> list[Any]:
    from llmos.api.memory.v1 import buffers_pb2, buffers_pb2_grpc

    stub = session.kernel(buffers_pb2_grpc.BuffersStub)
    request = buffers_pb2.ListBuffersRequest()
    return list(stub.ListBuffers(request, timeout=session.limit(QUICK_S)).buffers)


def _buffers(session: Session) -> Table:
    found = _buffer_list(session)
    rows = [
        [
            b.id[:12],
            size(b.size),
            str(b.leases),
            "sealed" if b.sealed else "",
            f"{b.age_s:.0f} s",
            b.tenant,
            b.owner[:20],
            b.label,
        ]
        for b in found
    ]
    columns = ["BUFFER", "SIZE", "LEASES", "SEALED", "AGE", "TENANT", "OWNER", "WHAT FOR"]
    return columns, rows, [as_value(b) for b in found]


def _tenants(session: Session) -> Table:
    sums: defaultdict[str, dict[str, int]] = defaultdict(
        lambda: {"models": 0, "granted_bytes": 0, "used_bytes": 0, "buffers": 0, "buffer_bytes": 0}
    )
    for grant in _grants(session):
        entry = sums[grant.tenant]
        entry["models"] += 1
        entry["granted_bytes"] += grant.bytes
        entry["used_bytes"] += grant.used_bytes
    for buffer in _buffer_list(session):
        sums[buffer.tenant]["buffers"] += 1
        sums[buffer.tenant]["buffer_bytes"] += buffer.size
    rows = [
        [
            name or "-",
            str(entry["models"]),
            size(entry["granted_bytes"]),
            size(entry["used_bytes"]),
            str(entry["buffers"]),
            size(entry["buffer_bytes"]),
        ]
        for name, entry in sorted(sums.items())
    ]
    value = [{"tenant": name, **entry} for name, entry in sorted(sums.items())]
    return ["TENANT", "MODELS", "GRANTED", "USED", "BUFFERS", "SIZE"], rows, value
