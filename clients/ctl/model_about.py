"""What surrounds a version: its tags, where it came from, and who keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl import model
from llmos.clients.ctl.output import as_value, duration, short_name, when
from llmos.clients.ctl.progress import note
from llmos.clients.ctl.session import QUICK_S, UINT32, Session, command
from llmos.lib.errors import NotFound

if TYPE_CHECKING:
    from llmos.api.storage.v1 import aliases_pb2

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
    """Show what a version was made from, back to the sources and the bytes of its data sets."""
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
    value = as_value(reply)
    named = dict.fromkeys(d for node in reply.nodes for d in node.lineage.datasets)
    value["datasets"] = [] if descendants else _datasets(session, list(named), rows)
    columns = ["MODEL", "TYPE", "MADE BY", "FROM", "DATA", "CODE", "WHEN"]
    session.out.rows(columns, rows, value)
    if reply.truncated:
        note("There is more: ask for more steps, or for one of these.")


def _datasets(session: Session, refs: list[str], rows: list[list[str]]) -> list[dict[str, Any]]:
    """Add a row for each split of data sets and of those that they were made from."""
    import grpc

    from llmos.api.storage.v1 import data_pb2, data_pb2_grpc
    from llmos.lib.rpc import from_rpc_error

    stub = session.kernel(data_pb2_grpc.DatasetsStub)
    found = []
    for ref in refs:  # grows as parents are found
        try:
            request = data_pb2.GetDatasetRequest(ref=ref)
            about = stub.GetDataset(request, timeout=session.limit(QUICK_S)).dataset
        except grpc.RpcError as exc:
            if not isinstance(from_rpc_error(exc), NotFound):
                raise
            rows.append([ref, "deleted", "", "", "", "", ""])
            continue
        about.ClearField("report")
        found.append(as_value(about))
        made = about.lineage.source or " ".join(
            filter(None, (about.lineage.step, about.lineage.job))
        )
        for split in about.splits:
            rows.append(
                [
                    f"{ref} {split.name}",
                    f"data, {split.rows:,} rows",
                    made,
                    ", ".join(about.lineage.parents),
                    f"sha256:{split.sha256}",
                    "",
                    when(about.created_unix_s),
                ]
            )
        refs += [parent for parent in about.lineage.parents if parent not in refs]
    return found


@command(
    lease,
    examples=[
        "llmos-ctl model lease take smollm2@prod --ttl 3600 --holder nightly-report",
        "llmos-ctl model lease take dataset:reviews@3",
    ],
)
def take(
    session: Session,
    ref: model.Ref,
    ttl: Annotated[float, typer.Option(min=1, max=_WEEK_S, help="Seconds.")] = 3600.0,
    holder: Annotated[str, typer.Option(help="Who takes it.")] = "llmos-ctl",
) -> None:
    """Take a lease on a version: it is not deleted before the lease runs out or is released.

    The execution server has one on what it serves, a job on what it reads. `dataset:NAME` stands
    for a data set.
    """
    from llmos.api.storage.v1 import aliases_pb2, aliases_pb2_grpc

    stub = session.kernel(aliases_pb2_grpc.VersionLeasesStub)
    request = aliases_pb2.AcquireVersionLeaseRequest(ref=ref, holder=holder, ttl_s=ttl)
    made = stub.AcquireVersionLease(request, timeout=session.limit(QUICK_S)).lease
    said = f"Lease {made.id} keeps {_leased(made)} for {duration(made.ttl_s)}."
    session.out.say(said, as_value(made))


@command(lease, watch=True)
def ls(
    session: Session,
    ref: Annotated[
        str,
        typer.Argument(help="Only of this (or `dataset:NAME`).", show_default=False),
    ] = "",
) -> None:
    """List the leases on versions."""
    from llmos.api.storage.v1 import aliases_pb2, aliases_pb2_grpc

    stub = session.kernel(aliases_pb2_grpc.VersionLeasesStub)
    request = aliases_pb2.ListVersionLeasesRequest(ref=ref)
    found = stub.ListVersionLeases(request, timeout=session.limit(QUICK_S)).leases
    rows = [[item.id, _leased(item), duration(item.remaining_s), item.holder] for item in found]
    session.out.rows(["LEASE", "VERSION", "LEFT", "HOLDER"], rows, [as_value(i) for i in found])


def _leased(lease: aliases_pb2.VersionLease) -> str:
    return f"{'dataset:' if lease.dataset else ''}{lease.model}@{lease.version}"


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
