"""Looking into the kernel and steering it."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos.clients.ctl import complete, events, limits, replay, top
from llmos.clients.ctl.frame import flags_of, services_of
from llmos.clients.ctl.output import as_value, duration
from llmos.clients.ctl.session import QUICK_S, UINT64, Session, command

app = typer.Typer(help="Look into the kernel and steer it.", no_args_is_help=True)


@command(app, watch=True)
def ports(session: Session) -> None:
    """List the attached processes and what they serve."""
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    reply = stub.ListPorts(admin_pb2.ListPortsRequest(), timeout=session.limit(QUICK_S))
    rows = []
    for port in reply.ports:
        rows.append(
            [
                str(port.port),
                port.name,
                str(port.pid or "-"),
                duration(port.attached_s),
                str(port.running),
                str(port.served),
                str(port.failed),
                flags_of(port),
                services_of(port),
            ]
        )
    columns = ["PORT", "NAME", "PID", "FOR", "RUNNING", "SERVED", "FAILED", "FLAGS", "SERVICES"]
    session.out.rows(columns, rows, [as_value(port) for port in reply.ports])


@command(app, watch=True)
def services(session: Session) -> None:
    """List the services, who serves them and what waits."""
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    reply = stub.ListServices(admin_pb2.ListServicesRequest(), timeout=session.limit(QUICK_S))
    rows = []
    for service in reply.services:
        waiting = [f"{q.key or '-'}:{q.queued}{'!' * q.faulting}" for q in service.queues]
        served_by = " ".join(map(str, service.ports)) or "nobody"
        queued = str(sum(q.queued for q in service.queues))
        rows.append([service.service, served_by, queued, " ".join(waiting)])
    columns = ["SERVICE", "PORTS", "QUEUED", "QUEUES (! = LOADING)"]
    session.out.rows(columns, rows, [as_value(service) for service in reply.services])


@command(app, watch=True)
def calls(
    session: Session,
    service: Annotated[str, typer.Option(help="Only of this service (full name).")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 1000,
) -> None:
    """List the calls that wait or run, oldest first."""
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    request = admin_pb2.ListCallsRequest(page_size=limit, service=service)
    reply = stub.ListCalls(request, timeout=session.limit(QUICK_S))
    rows, value = [], []
    for call in reply.calls:
        members = as_value(call)
        rows.append(
            [
                call.id,
                call.method.rsplit(".", 1)[-1],
                call.key,
                members["call_class"],
                call.tenant,
                call.caller,
                str(call.server) if call.server else "queued",
                duration(call.age_s),
                duration(call.remaining_s) if call.remaining_s >= 0 else "-",
                str(call.attempt),
            ]
        )
        value.append(members)
    columns = "ID METHOD KEY CLASS TENANT CALLER PORT AGE LEFT ATTEMPT".split()
    session.out.rows(columns, rows, value)


@command(app, watch=True)
def stats(session: Session) -> None:
    """Show the kernel's counters since it started."""
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
    from llmos.lib.errors import NAMES

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    reply = stub.GetStats(admin_pb2.GetStatsRequest(), timeout=session.limit(QUICK_S))
    value = as_value(reply)
    pairs = {k: str(v) for k, v in value.items() if k not in ("ended", "uptime_s")}
    pairs["uptime"] = duration(reply.uptime_s)
    for code, count in sorted(reply.ended.items()):
        pairs[f"ended {NAMES.get(code, str(code))}"] = str(count)
    session.out.fields(pairs, value)


@command(app)
def cancel(
    session: Session,
    id: Annotated[
        str,
        typer.Argument(help="See `llmos-ctl kernel calls`.", autocompletion=complete.calls),
    ],
) -> None:
    """Cancel a call as its client would."""
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    stub.CancelCall(admin_pb2.CancelCallRequest(id=id), timeout=session.limit(QUICK_S))
    session.out.say(f"Call {id} is cancelled.", {"id": id})


@command(app)
def drain(
    session: Session,
    port: Annotated[
        int,
        typer.Argument(
            min=1,
            max=UINT64,
            help="See `llmos-ctl kernel ports`.",
            autocompletion=complete.ports,
        ),
    ],
) -> None:
    """Give a port no new calls; running ones finish."""
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    reply = stub.DrainPort(admin_pb2.DrainPortRequest(port=port), timeout=session.limit(QUICK_S))
    session.out.say(f"Port {port} drains; {reply.running} calls still run.", as_value(reply))


top.register(app)
limits.register(app)
events.register(app)
replay.register(app)
