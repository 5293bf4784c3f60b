"""Aliases of models: names such as `prod` that mean one version and can be moved."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from llmos.clients.ctl import model
from llmos.clients.ctl.output import as_value, short_name, when
from llmos.clients.ctl.progress import note
from llmos.clients.ctl.session import QUICK_S, UINT64, Session, command
from llmos.lib.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from llmos.api.storage.v1 import aliases_pb2, aliases_pb2_grpc

app = typer.Typer(
    help="Name versions (`smollm2@prod`), move the names, take moves back.", no_args_is_help=True
)
model.app.add_typer(app, name="alias")
AliasRef = Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="An alias, e.g. smollm2@prod.")]
Expect = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=UINT64,
        help="Only when it is at this revision (of `alias ls`); 0 = when it is new.",
        show_default=False,
    ),
]
_AGAIN_S = 0.5


def _stub(session: Session) -> aliases_pb2_grpc.AliasesStub:
    from llmos.api.storage.v1 import aliases_pb2_grpc

    return session.kernel(aliases_pb2_grpc.AliasesStub)


@command(
    app,
    "set",
    examples=[
        "llmos-ctl model alias set smollm2@3 prod",
        "llmos-ctl model alias set smollm2@4 prod --expect 17",
        'llmos-ctl run smollm2@prod "What is the capital of France?"',
    ],
)
def set_(
    session: Session,
    ref: model.Ref,
    alias: Annotated[str, typer.Argument(help="Its name, e.g. prod.")],
    expect: Expect = None,
) -> None:
    """Point an alias at a version; it is made when it is new."""
    from llmos.api.storage.v1 import aliases_pb2, registry_pb2, registry_pb2_grpc

    limit = session.limit(QUICK_S)
    versions = session.kernel(registry_pb2_grpc.RegistryStub)
    version = versions.GetVersion(registry_pb2.GetVersionRequest(ref=ref), timeout=limit).version
    request = aliases_pb2.SetAliasRequest(
        model=version.name, alias=alias, version=version.version, expected_revision=expect
    )
    reply = _stub(session).SetAlias(request, timeout=limit)
    session.out.say(_said(reply.alias, reply.previous_version), as_value(reply))


@command(
    app,
    examples=["llmos-ctl model alias ls", "llmos-ctl model alias ls smollm2 -o json"],
    watch=True,
)
def ls(
    session: Session,
    name: Annotated[str, typer.Argument(help="Only of this model.", show_default=False)] = "",
) -> None:
    """List aliases and the versions that they mean."""
    from llmos.api.storage.v1 import aliases_pb2

    found: list[aliases_pb2.Alias] = []
    request = aliases_pb2.ListAliasesRequest(model=name, page_size=500)
    stub = _stub(session)
    while True:
        page = stub.ListAliases(request, timeout=session.limit(QUICK_S))
        found += page.aliases
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    rows = [[f"{a.model}@{a.alias}", f"{a.model}@{a.version}", str(a.revision)] for a in found]
    session.out.rows(["ALIAS", "MEANS", "REVISION"], rows, [as_value(alias) for alias in found])


@command(app, examples=["llmos-ctl model alias history smollm2@prod"], watch=True)
def history(
    session: Session,
    ref: AliasRef,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="How many.")] = 20,
) -> None:
    """Show the moves of an alias, the newest first."""
    from llmos.api.storage.v1 import aliases_pb2

    name, alias = _split(ref)
    request = aliases_pb2.ListAliasMovesRequest(model=name, alias=alias, page_size=count)
    moves = _stub(session).ListAliasMoves(request, timeout=session.limit(QUICK_S)).moves
    rows = []
    for m in moves:
        moved = [_version(m.previous_version), _version(m.version)]
        rows.append([str(m.revision), _kind(m), *moved, m.actor, when(m.unix_s)])
    columns = ["REVISION", "WHAT", "FROM", "TO", "BY", "WHEN"]
    session.out.rows(columns, rows, [as_value(move) for move in moves])


@command(app, examples=["llmos-ctl model alias rollback smollm2@prod"])
def rollback(session: Session, ref: AliasRef, expect: Expect = None) -> None:
    """Take back the newest move of an alias; again = one move further back."""
    from llmos.api.storage.v1 import aliases_pb2

    name, alias = _split(ref)
    stub, limit = _stub(session), session.limit(QUICK_S)
    if expect is None:
        expect = _revision(session, name, alias)
    request = aliases_pb2.RollbackAliasRequest(model=name, alias=alias, expected_revision=expect)
    reply = stub.RollbackAlias(request, timeout=limit)
    session.out.say(_said(reply.alias, reply.previous_version), as_value(reply))


@command(app, examples=["llmos-ctl model alias rm smollm2@prod"])
def rm(session: Session, ref: AliasRef, expect: Expect = None) -> None:
    """Remove an alias; its history stays."""
    from llmos.api.storage.v1 import aliases_pb2

    name, alias = _split(ref)
    request = aliases_pb2.DeleteAliasRequest(model=name, alias=alias, expected_revision=expect)
    reply = _stub(session).DeleteAlias(request, timeout=session.limit(QUICK_S))
    said = f"Removed {ref}." if reply.existed else f"{ref} was not there."
    session.out.say(said, as_value(reply))


@command(
    model.app,
    examples=[
        "llmos-ctl model watch",
        "llmos-ctl model watch smollm2@prod",
        "llmos-ctl model watch --after 17 -o json",
    ],
)
def watch(
    session: Session,
    ref: Annotated[
        str, typer.Argument(metavar="[NAME[@ALIAS]]", help="Only of these.", show_default=False)
    ] = "",
    after: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=UINT64,
            help="Begin after this revision; 0 = at the beginning. [default: now]",
            show_default=False,
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="End after so many moves; 0 = never.")] = 0,
) -> None:
    """Print moves of aliases as they are made, until Ctrl-C. JSON: one line per move."""
    name, _, alias = ref.partition("@")
    try:
        for number, move in enumerate(_moves(session, name, alias, after), 1):
            if session.json:
                print(json.dumps(as_value(move), ensure_ascii=False), flush=True)
            else:
                stamp = time.strftime("%H:%M:%S", time.localtime(move.unix_s))
                moved = f"{_version(move.previous_version)} -> {_version(move.version)}"
                what = f"{move.model}@{move.alias}"
                tail = f"({_kind(move)} by {move.actor}, revision {move.revision})"
                print(f"{stamp}  {what:<30}  {moved:<12}  {tail}", flush=True)
            if number == count:
                return
    except KeyboardInterrupt:
        return  # the usual end


def _moves(
    session: Session, name: str, alias: str, after: int | None
) -> Iterator[aliases_pb2.AliasMove]:
    """Yield moves; goes on where it was when storage or the kernel went away."""
    import grpc

    from llmos.api.storage.v1 import aliases_pb2
    from llmos.lib.errors import Unavailable
    from llmos.lib.rpc import from_rpc_error

    told = False
    while True:
        request = aliases_pb2.WatchAliasesRequest(model=name, alias=alias, after_revision=after)
        stream = _stub(session).WatchAliases(request, timeout=session.limit(), wait_for_ready=True)
        try:
            for reply in stream:
                after = reply.move.revision
                if reply.move.kind:
                    yield reply.move
                elif not told:
                    note(f"  watching from revision {after}")
                    told = True
        except grpc.RpcError as exc:
            error = from_rpc_error(exc)
            if not isinstance(error, Unavailable):
                raise error from exc
        finally:
            stream.cancel()
        time.sleep(_AGAIN_S)


def _revision(session: Session, name: str, alias: str) -> int:
    from llmos.api.storage.v1 import aliases_pb2

    request = aliases_pb2.ListAliasMovesRequest(model=name, alias=alias, page_size=1)
    moves = _stub(session).ListAliasMoves(request, timeout=session.limit(QUICK_S)).moves
    if not moves:
        raise NotFound("NO_SUCH_ALIAS", f"{name}@{alias} never was an alias.")
    return moves[0].revision


def _split(ref: str) -> tuple[str, str]:
    name, _, alias = ref.partition("@")
    if not name or not alias:
        raise InvalidArgument("BAD_NAME", f"{ref[:60]!r} is no alias: write NAME@ALIAS.")
    return name, alias


def _said(alias: aliases_pb2.Alias, previous: int) -> str:
    before = f" (before: version {previous})" if previous else ""
    if previous == alias.version:
        before = " already"
    return f"{alias.model}@{alias.alias} means version {alias.version}{before}."


def _kind(move: aliases_pb2.AliasMove) -> str:
    return short_name(move.DESCRIPTOR.fields_by_name["kind"].enum_type, move.kind)


def _version(number: int) -> str:
    return str(number) if number else "-"
