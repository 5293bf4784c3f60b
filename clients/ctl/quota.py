"""Quotas: how much each tenant has stored, and how much it may."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from llmos.clients.ctl.output import as_value, size
from llmos.clients.ctl.session import QUICK_S, UINT64, Session, command
from llmos.lib.errors import InvalidArgument

if TYPE_CHECKING:
    from llmos.api.storage.v1 import quota_pb2

app = typer.Typer(help="What each tenant has stored and may store.", no_args_is_help=True)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


@command(app, "list", watch=True)
@command(app, watch=True)
def ls(session: Session) -> None:
    """List the tenants that store something or have limits of their own."""
    from llmos.api.storage.v1 import quota_pb2, quota_pb2_grpc

    stub = session.kernel(quota_pb2_grpc.QuotasStub)
    reply = stub.ListQuotas(quota_pb2.ListQuotasRequest(), timeout=session.limit(QUICK_S))
    rows = [_row(quota) for quota in reply.quotas]
    columns = ["TENANT", "USED", "LIMIT", "ITEMS", "MOST", "KINDS"]
    session.out.rows(columns, rows, [as_value(quota) for quota in reply.quotas])


def _row(quota: quota_pb2.Quota) -> list[str]:
    return [
        quota.tenant,
        size(quota.used_bytes),
        size(quota.limit_bytes) if quota.limit_bytes else "-",
        str(quota.used_items),
        str(quota.limit_items) if quota.limit_items else "-",
        ", ".join(f"{kind.items} {kind.kind}" for kind in quota.kinds),
    ]


@command(app, examples=["llmos-ctl storage quota show", "llmos-ctl storage quota show team-a"])
def show(
    session: Session,
    tenant: Annotated[str, typer.Argument(help="A tenant.", show_default="yourself")] = "",
) -> None:
    """Show a tenant's limits and what it has stored, by kind."""
    from llmos.api.storage.v1 import quota_pb2, quota_pb2_grpc

    stub = session.kernel(quota_pb2_grpc.QuotasStub)
    request = quota_pb2.GetQuotaRequest(tenant=tenant)
    _print(session, stub.GetQuota(request, timeout=session.limit(QUICK_S)).quota)


@command(
    app,
    "set",
    examples=[
        "llmos-ctl storage quota set team-a --bytes 50GiB",
        "llmos-ctl storage quota set '*' --bytes 10GiB --items 1000   # all others",
        "llmos-ctl storage quota set team-a --reset",
    ],
)
def set_(
    session: Session,
    tenant: Annotated[str, typer.Argument(help="A tenant; * = the default of all others.")],
    bytes_: Annotated[
        str | None, typer.Option("--bytes", help="Most bytes, e.g. 50GiB; 0 = without limit.")
    ] = None,
    items: Annotated[
        int | None,
        typer.Option(min=0, max=UINT64, help="Most versions and documents; 0 = without limit."),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Back to the default limits.")] = False,
) -> None:
    """Set how much a tenant may store; what is not given stays as it is."""
    from llmos.api.storage.v1 import quota_pb2, quota_pb2_grpc

    if reset == (bytes_ is not None or items is not None):
        raise InvalidArgument("BAD_QUOTA", "Give --bytes, --items or both, or else --reset.")
    stub = session.kernel(quota_pb2_grpc.QuotasStub)
    request = quota_pb2.SetQuotaRequest(tenant=tenant, reset=reset)
    if not reset:
        asked = quota_pb2.GetQuotaRequest(tenant=tenant)
        now = stub.GetQuota(asked, timeout=session.limit(QUICK_S)).quota
        request.limit_bytes = now.limit_bytes if bytes_ is None else parse_size(bytes_)
        request.limit_items = now.limit_items if items is None else items
    _print(session, stub.SetQuota(request, timeout=session.limit(QUICK_S)).quota)


def _print(session: Session, quota: quota_pb2.Quota) -> None:
    default = " (the default)" if quota.by_default else ""
    most = f"{size(quota.limit_bytes)}{default}" if quota.limit_bytes else "no limit"
    pairs = {
        "tenant": quota.tenant,
        "bytes": f"{size(quota.used_bytes)} of {most}",
        "items": f"{quota.used_items} of {quota.limit_items or 'no limit'}",
    }
    for kind in quota.kinds:
        pairs[kind.kind] = f"{kind.items}, {size(kind.bytes)}"
    session.out.fields(pairs, as_value(quota))


def parse_size(text: str) -> int:
    """Return the bytes that `50GiB`, `2 GB` or `1000` means. Raises BAD_QUOTA."""
    match = re.fullmatch(r"\s*([0-9]{1,20}(?:\.[0-9]{1,9})?)\s*([kmgt]?i?)b?\s*", text.lower())
    units = _UNITS | _BINARY
    if match is not None and match[2] in units:
        return (
            int(float(match[1]) * units[match[2]])
            if "." in match[1]
            else (int(match[1]) * units[match[2]])
        )
    raise InvalidArgument("BAD_QUOTA", f"{text[:40]!r} is no size: write e.g. 50GiB, 2GB or 1000.")
