"""Prefixes: what is kept of texts that models have read."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmos.clients.ctl.output import as_value, size
from llmos.clients.ctl.session import QUICK_S, Session, command

app = typer.Typer(help="What models have read and need not read again.", no_args_is_help=True)


def _stub(session: Session) -> Any:
    from llmos.api.memory.v1 import prefix_pb2_grpc

    return session.kernel(prefix_pb2_grpc.PrefixesStub)


@command(app, name="list", examples=["llmos-ctl mem prefixes list"], watch=True)
def list_(session: Session) -> None:
    """List what is held, by model, layout and tenant."""
    from llmos.api.memory.v1 import prefix_pb2 as pb

    found = _stub(session).ListSpaces(pb.ListSpacesRequest(), timeout=session.limit(QUICK_S))
    rows = [
        [
            s.space.model[:12],
            s.space.tenant,
            size(s.ram_blocks * s.block_bytes),
            size(s.disk_blocks * s.block_bytes),
            str(s.hits),
            str(s.misses),
            f"{s.idle_s:.0f} s",
            s.space.layout,
        ]
        for s in found.spaces
    ]
    columns = ["MODEL", "TENANT", "MEMORY", "DISK", "HITS", "MISSES", "IDLE", "LAYOUT"]
    session.out.rows(columns, rows, as_value(found))


@command(app, examples=["llmos-ctl mem prefixes drop", "llmos-ctl mem prefixes drop --tenant ann"])
def drop(
    session: Session,
    tenant: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    model: Annotated[str, typer.Option(help="Only of this model: the digest as listed.")] = "",
) -> None:
    """Forget blocks, in memory and on disk; models read again what they need."""
    from llmos.api.memory.v1 import prefix_pb2 as pb

    request = pb.DropBlocksRequest(model=model, tenant=tenant)
    answer = _stub(session).DropBlocks(request, timeout=session.limit(QUICK_S))
    said = f"{answer.blocks} blocks, {size(answer.bytes)}, are forgotten."
    session.out.say(said, as_value(answer))
