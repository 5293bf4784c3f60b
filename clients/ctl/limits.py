"""`llmos-ctl kernel tenants` and `limits`: who uses the kernel, and how much they may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl.output import as_value
from llmos.clients.ctl.session import QUICK_S, Session, command
from llmos.lib.errors import InvalidArgument

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from llmos.api.kernel.v1 import admin_pb2


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""

    @command(app, watch=True)
    def tenants(session: Session) -> None:
        """List the tenants, what they may use and what they have used."""
        reply = _ask(session)
        rows = []
        for tenant in reply.tenants:
            limits = tenant.limits
            rows.append(
                [
                    limits.tenant,
                    f"{limits.weight:g}",
                    str(tenant.open),
                    _limit(limits.max_calls),
                    _limit(limits.calls_per_s),
                    _limit(limits.cost_per_s),
                    str(tenant.ended),
                    f"{tenant.cost:.4g}",
                ]
            )
        columns = "TENANT WEIGHT OPEN MAX-CALLS CALLS/S COST/S ENDED COST".split()
        session.out.rows(columns, rows, [as_value(tenant) for tenant in reply.tenants])

    @command(
        app,
        examples=[
            "llmos-ctl kernel limits",
            "llmos-ctl kernel limits --set max_queued=1000 --set ageing_s=5",
            "llmos-ctl kernel limits --tenant alice --weight 2 --calls-per-s 50",
        ],
    )
    def limits(
        session: Session,
        set: Annotated[
            list[str] | None, typer.Option(metavar="KEY=VALUE", help="A limit of the kernel.")
        ] = None,
        tenant: Annotated[str, typer.Option(help="Change the limits of this tenant.")] = "",
        weight: Annotated[
            float | None, typer.Option(help="The tenant's share relative to others.")
        ] = None,
        max_calls: Annotated[
            int | None, typer.Option(help="Its calls queued and running; 0 = unlimited.")
        ] = None,
        calls_per_s: Annotated[
            float | None, typer.Option(help="Its new calls per second; 0 = unlimited.")
        ] = None,
        cost_per_s: Annotated[
            float | None, typer.Option(help="Its cost per second; 0 = unlimited.")
        ] = None,
    ) -> None:
        """Show the kernel's limits, or change limits at once, until the kernel restarts."""
        wanted = {
            "weight": weight,
            "max_calls": max_calls,
            "calls_per_s": calls_per_s,
            "cost_per_s": cost_per_s,
        }
        _change(session, set or [], tenant, {k: v for k, v in wanted.items() if v is not None})


def _change(session: Session, settings: list[str], tenant: str, wanted: dict[str, Any]) -> None:
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    request = admin_pb2.UpdateLimitsRequest()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InvalidArgument("BAD_LIMIT", f"--set {setting} is not KEY=VALUE.")
        _set(request.limits, key, text)
    if wanted and not tenant:
        raise InvalidArgument(
            "BAD_LIMIT", f"Say whose {', '.join(wanted)} it is: add --tenant NAME."
        )
    if tenant:
        if not wanted:
            raise InvalidArgument(
                "BAD_LIMIT",
                f"Say what is to change for {tenant}: --weight, --max-calls, --calls-per-s or "
                "--cost-per-s; `llmos-ctl kernel tenants` shows what holds.",
            )
        limits = request.tenants.add(tenant=tenant)
        for key, number in wanted.items():
            _set(limits, key, str(number))
    if settings or tenant:
        stub = session.kernel(admin_pb2_grpc.AdminStub)
        stub.UpdateLimits(request, timeout=session.limit(QUICK_S))
    reply = _ask(session)
    changed: Message = reply.limits
    if tenant:
        changed = next(t.limits for t in reply.tenants if t.limits.tenant == tenant)
    value = as_value(changed)
    session.out.fields({key: _shown(item) for key, item in value.items()}, value)


def _set(limits: Message, key: str, text: str) -> None:
    fields = limits.DESCRIPTOR.fields_by_name
    if key not in fields:
        raise InvalidArgument("BAD_LIMIT", f"There is no limit {key!r}; there are {_names(fields)}")
    whole = fields[key].type == fields[key].TYPE_UINT32
    try:
        setattr(limits, key, int(text) if whole else float(text))
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise InvalidArgument(
            "BAD_LIMIT", f"{key} = {text} is no limit: it must be {kind}, 0 or more."
        ) from None


def _names(fields: Any) -> str:
    return ", ".join(fields) + "."


def _ask(session: Session) -> admin_pb2.ListTenantsResponse:
    from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc

    stub = session.kernel(admin_pb2_grpc.AdminStub)
    return stub.ListTenants(admin_pb2.ListTenantsRequest(), timeout=session.limit(QUICK_S))


def _limit(number: float) -> str:
    return f"{number:g}" if number else "-"


def _shown(item: Any) -> str:
    return f"{item:g}" if isinstance(item, float) else str(item)
