"""Small state: documents that programs keep their settings and progress in."""

from __future__ import annotations

import base64
import json
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl.output import as_value, size
from llmos.clients.ctl.progress import note
from llmos.clients.ctl.session import QUICK_S, UINT64, Session, command
from llmos.lib.errors import InvalidArgument

if TYPE_CHECKING:
    from llmos.api.storage.v1 import state_pb2

app = typer.Typer(
    help="Small documents with a history: get, put, list, watch, delete.", no_args_is_help=True
)
Key = Annotated[str, typer.Argument(help="A document's name, e.g. apps/chat/theme.")]
_AGAIN_S = 0.5


@command(app, examples=["llmos-ctl state get apps/chat/theme"])
def get(
    session: Session,
    key: Key,
    revision: Annotated[
        int, typer.Option(min=0, max=UINT64, help="As of this revision.", show_default="now")
    ] = 0,
) -> None:
    """Print a document's content, as it is stored."""
    from llmos.api.storage.v1 import state_pb2, state_pb2_grpc

    stub = session.kernel(state_pb2_grpc.DocumentsStub)
    request = state_pb2.GetDocumentRequest(key=key, revision=revision)
    document = stub.GetDocument(request, timeout=session.limit(QUICK_S)).document
    if session.json:
        session.out.say("", _value(document))
        return
    sys.stdout.buffer.write(document.value)
    if sys.stdout.isatty():
        print()


@command(
    app,
    examples=[
        "llmos-ctl state put apps/chat/theme dark",
        "llmos-ctl state put apps/chat/settings --file settings.json --type application/json",
        "llmos-ctl state put apps/chat/leader me --if-revision 0   # only if there is none",
    ],
)
def put(
    session: Session,
    key: Key,
    value: Annotated[
        str | None, typer.Argument(help="Its new content.", show_default=False)
    ] = None,
    file: Annotated[
        str, typer.Option("--file", "-f", help="Take the content from a file; - = stdin.")
    ] = "",
    type_: Annotated[str, typer.Option("--type", help="Media type of the content.")] = "",
    lease: Annotated[str, typer.Option(help="Lease that it goes with.")] = "",
    if_revision: Annotated[
        int | None,
        typer.Option(
            min=0, max=UINT64, help="Only if it is at this revision; 0 = only if it is new."
        ),
    ] = None,
) -> None:
    """Create or replace a document."""
    from llmos.api.storage.v1 import state_pb2, state_pb2_grpc

    if (value is None) == (not file):
        raise InvalidArgument("BAD_CONTENT", "Give the content either as VALUE or by --file.")
    request = state_pb2.PutDocumentRequest(
        key=key,
        value=_read(file) if value is None else value.encode("utf-8", "surrogateescape"),
        content_type=type_,
        lease=lease,
        request_id=uuid.uuid4().hex,
    )
    if if_revision is not None:
        request.if_mod_revision = if_revision
    stub = session.kernel(state_pb2_grpc.DocumentsStub)
    document = stub.PutDocument(request, timeout=session.limit(QUICK_S)).document
    value_ = as_value(document)
    del value_["value"]
    session.out.say(
        f"{key} is at version {document.version}, revision {document.mod_revision}.", value_
    )


def _read(file: str) -> bytes:
    return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()


@command(app, "list", watch=True)
@command(app, examples=["llmos-ctl state ls apps/"], watch=True)
def ls(
    session: Session,
    prefix: Annotated[str, typer.Argument(help="Beginning of the names.")] = "",
    revision: Annotated[
        int, typer.Option(min=0, max=UINT64, help="As of this revision.", show_default="now")
    ] = 0,
) -> None:
    """List documents by name."""
    rows, value = [], []
    for document in _documents(session, prefix, revision):
        about = _value(document)
        text = about.get("text", f"({document.content_type or 'binary'})")
        shown = text if len(text) <= 60 else text[:57] + "..."
        rows.append(
            [
                document.key,
                str(document.version),
                str(document.mod_revision),
                size(len(document.value)),
                document.lease,
                "".join(c if c.isprintable() else " " for c in shown),
            ]
        )
        value.append(about)
    session.out.rows(["KEY", "VERSION", "REVISION", "SIZE", "LEASE", "CONTENT"], rows, value)


def _documents(session: Session, prefix: str, revision: int) -> Iterator[state_pb2.Document]:
    from llmos.api.storage.v1 import state_pb2, state_pb2_grpc

    stub = session.kernel(state_pb2_grpc.DocumentsStub)
    request = state_pb2.ListDocumentsRequest(prefix=prefix, revision=revision, page_size=1000)
    while True:
        page = stub.ListDocuments(request, timeout=session.limit(QUICK_S))
        yield from page.documents
        request.page_token = page.next_page_token
        if not request.page_token:
            return


@command(
    app, examples=["llmos-ctl state delete apps/chat/theme", "llmos-ctl state delete apps/ -p"]
)
def delete(
    session: Session,
    key: Key,
    prefix: Annotated[
        bool, typer.Option("--prefix", "-p", help="All documents whose names begin so.")
    ] = False,
    if_revision: Annotated[
        int | None, typer.Option(min=0, max=UINT64, help="Only if it is at this revision.")
    ] = None,
) -> None:
    """Delete a document, or all below a prefix."""
    from llmos.api.storage.v1 import state_pb2, state_pb2_grpc

    request = state_pb2.DeleteDocumentsRequest(request_id=uuid.uuid4().hex)
    if prefix:
        request.prefix = key
    else:
        request.key = key
    if if_revision is not None:
        request.if_mod_revision = if_revision
    stub = session.kernel(state_pb2_grpc.DocumentsStub)
    reply = stub.DeleteDocuments(request, timeout=session.limit(QUICK_S))
    session.out.say(f"Deleted {reply.deleted}, revision {reply.revision}.", as_value(reply))


@command(
    app, examples=["llmos-ctl state watch apps/", "llmos-ctl state watch --from 1200 --count 1"]
)
def watch(
    session: Session,
    prefix: Annotated[str, typer.Argument(help="Beginning of the names.")] = "",
    from_: Annotated[
        int, typer.Option("--from", min=0, max=UINT64, help="First revision.", show_default="now")
    ] = 0,
    count: Annotated[int, typer.Option(min=0, help="End after so many; 0 = never.")] = 0,
) -> None:
    """Print changes as they come, without gaps, until Ctrl-C. JSON: one line per change."""
    try:
        for number, change in enumerate(_changes(session, prefix, from_), 1):
            _show(session, change)
            if number == count:
                return
    except KeyboardInterrupt:
        return  # the usual end


def _changes(session: Session, prefix: str, start: int) -> Iterator[state_pb2.Change]:
    """Yield changes, also across restarts of storage: what was told is the place to go on from."""
    import grpc

    from llmos.api.storage.v1 import state_pb2, state_pb2_grpc
    from llmos.lib.errors import Unavailable
    from llmos.lib.rpc import from_rpc_error

    while True:
        stub = session.kernel(state_pb2_grpc.DocumentsStub)
        request = state_pb2.WatchDocumentsRequest(prefix=prefix, start_revision=start)
        stream = stub.WatchDocuments(request, timeout=session.limit(), wait_for_ready=True)
        try:
            for reply in stream:
                if not start:
                    note(f"  watching from revision {reply.revision + 1}")
                yield from reply.changes
                start = reply.revision + 1
        except grpc.RpcError as exc:
            error = from_rpc_error(exc)
            if not isinstance(error, Unavailable):
                raise error from exc
        finally:
            stream.cancel()
        time.sleep(_AGAIN_S)


def _show(session: Session, change: state_pb2.Change) -> None:
    document = change.document
    about = _value(document)
    if session.json:
        line = {"key": document.key, "deleted": change.deleted, **about}
        print(json.dumps(line, ensure_ascii=False), flush=True)
        return
    verb = "deleted" if change.deleted else "put"
    text = "" if change.deleted else about.get("text", f"({size(len(document.value))})")
    shown = "".join(c if c.isprintable() else " " for c in text)
    print(f"{document.mod_revision:>8}  {verb:<7}  {document.key}  {shown}".rstrip(), flush=True)


def _value(document: state_pb2.Document) -> dict[str, Any]:
    """Return a document as JSON values: its content as `text`, or as `base64` when it is none."""
    value = as_value(document)
    del value["value"]
    try:
        value["text"] = document.value.decode()
    except UnicodeDecodeError:
        value["base64"] = base64.b64encode(document.value).decode()
    return value
