"""What surrounds a version: its tags, where it came from, and who keeps it."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos.clients.ctl import model
from llmos.clients.ctl.output import as_value, duration, short_name, when
from llmos.clients.ctl.progress import note
from llmos.clients.ctl.session import QUICK_S, UINT32, Session, command

lease = typer.Typer(help="Keep versions from being deleted, for a while.", no_args_is_help=True)
model.app.add_typer(lease, name="lease")
_WEEK_S = 604_800.0


@command(
    model.app,
    examples=[
        "llmos-ctl model tag smollm2@1",
        "llmos-ctl model tag smollm2@1 team=search reviewed --remove draft",
        "llmos-ctl model ls --tag team=search",
    ],
)
def tag(
    session: Session,
    ref: Annotated[str, typer.Argument(help="A version, `name@version`.")],
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY[=VALUE]]...", help="Tags to add.")
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(help="Key of a tag to remove.")] = None,
) -> None:
    """Add tags to a version, remove them, or show them."""
    from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc

    stub, limit = session.kernel(registry_pb2_grpc.RegistryStub), session.limit(QUICK_S)
    if tags or remove:
        change = registry_pb2.SetTagsRequest(
            ref=ref, set=model.pairs(tags or []), remove=remove or []
        )
        there = dict(stub.SetTags(change, timeout=limit).tags)
    else:
        asked = registry_pb2.GetVersionRequest(ref=ref)
        there = dict(stub.GetVersion(asked, timeout=limit).version.tags)
    session.out.fields(dict(sorted(there.items())), there)


@command(
    model.app,
    examples=[
        "llmos-ctl model lineage smollm2@prod",
        "llmos-ctl model lineage base@1 --descendants",
    ],
)
def lineage(
    session: Session,
    ref: model.Ref,
    descendants: Annotated[
        bool, typer.Option("--descendants", help="What was made from it, instead.")
    ] = False,
    depth: Annotated[int, typer.Option(min=0, max=UINT32, help="So many steps; 0 = all.")] = 0,
) -> None:
    """Show what a version was made from, back to the sources."""
    from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc

    stub = session.kernel(registry_pb2_grpc.RegistryStub)
    request = registry_pb2.GetLineageRequest(ref=ref, descendants=descendants, max_depth=depth)
    reply = stub.GetLineage(request, timeout=session.limit(QUICK_S))
    rows = []
    for node in reply.nodes:
        about, kinds = node.lineage, node.DESCRIPTOR.fields_by_name["format"].enum_type
        made = " ".join(filter(None, (about.step, about.job)))
        kind = " ".join(filter(None, (short_name(kinds, node.format), node.dtype)))
        rows.append(
            [
                f"{'  ' * node.depth}{node.ref}",
                "deleted" if node.missing else kind,
                made or about.source,
                ", ".join(about.parents),
                ", ".join(about.datasets),
                about.code,
                when(node.created_unix_s),
            ]
        )
    columns = ["MODEL", "TYPE", "MADE BY", "FROM", "DATA", "CODE", "WHEN"]
    session.out.rows(columns, rows, as_value(reply))
    if reply.truncated:
        note("There is more: ask for more steps, or for one of these.")


@command(
    lease,
    examples=["llmos-ctl model lease take smollm2@prod --ttl 3600 --holder nightly-report"],
)
def take(
    session: Session,
    ref: model.Ref,
    ttl: Annotated[float, typer.Option(min=1, max=_WEEK_S, help="Seconds.")] = 3600.0,
    holder: Annotated[str, typer.Option(help="Who takes it.")] = "llmos-ctl",
) -> None:
    """Take a lease on a version: it is not deleted before the lease runs out or is released."""
    from llmos.api.storage.v1 import aliases_pb2, aliases_pb2_grpc

    stub = session.kernel(aliases_pb2_grpc.VersionLeasesStub)
    request = aliases_pb2.AcquireVersionLeaseRequest(ref=ref, holder=holder, ttl_s=ttl)
    made = stub.AcquireVersionLease(request, timeout=session.limit(QUICK_S)).lease
    said = f"Lease {made.id} keeps {made.model}@{made.version} for {duration(made.ttl_s)}."
    session.out.say(said, as_value(made))


@command(lease)
def ls(
    session: Session,
    ref: Annotated[str, typer.Argument(help="Only of this version.", show_default=False)] = "",
) -> None:
    """List the leases on versions."""
    from llmos.api.storage.v1 import aliases_pb2, aliases_pb2_grpc

    stub = session.kernel(aliases_pb2_grpc.VersionLeasesStub)
    request = aliases_pb2.ListVersionLeasesRequest(ref=ref)
    found = stub.ListVersionLeases(request, timeout=session.limit(QUICK_S)).leases
    rows = [
        [item.id, f"{item.model}@{item.version}", duration(item.remaining_s), item.holder]
        for item in found
    ]
    session.out.rows(["LEASE", "MODEL", "LEFT", "HOLDER"], rows, [as_value(i) for i in found])


@command(lease)
def renew(session: Session, id: Annotated[str, typer.Argument(help="Of the lease.")]) -> None:
    """Start the time of a lease anew."""
    from llmos.api.storage.v1 import aliases_pb2, aliases_pb2_grpc

    stub = session.kernel(aliases_pb2_grpc.VersionLeasesStub)
    request = aliases_pb2.RenewVersionLeaseRequest(id=id)
    now = stub.RenewVersionLease(request, timeout=session.limit(QUICK_S)).lease
    session.out.say(f"Lease {id} goes on for {duration(now.remaining_s)}.", as_value(now))


@command(lease)
def release(session: Session, id: Annotated[str, typer.Argument(help="Of the lease.")]) -> None:
    """Give a lease back."""
    from llmos.api.storage.v1 import aliases_pb2, aliases_pb2_grpc

    stub = session.kernel(aliases_pb2_grpc.VersionLeasesStub)
    request = aliases_pb2.ReleaseVersionLeaseRequest(id=id)
    reply = stub.ReleaseVersionLease(request, timeout=session.limit(QUICK_S))
    said = f"Released {id}." if reply.existed else f"Lease {id} was not there."
    session.out.say(said, as_value(reply))
