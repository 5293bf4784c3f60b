"""The audit log: who changed what, and whether the log is what was written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl.output import as_value, when
from llmos.clients.ctl.progress import count_bar
from llmos.clients.ctl.session import QUICK_S, UINT64, Session, command
from llmos.lib.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from llmos.api.storage.v1 import audit_pb2

app = typer.Typer(
    help="The log of all changes in storage: list, export, verify.", no_args_is_help=True
)
Heads = Annotated[
    list[str] | None,
    typer.Option("--head", help="A head noted before (SEQ:HASH), which must be in the log."),
]


@command(app, "list", watch=True)
@command(
    app,
    examples=["llmos-ctl audit ls -n 20", "llmos-ctl audit ls --action model. --all"],
    watch=True,
)
def ls(
    session: Session,
    number: Annotated[int, typer.Option("-n", min=1, max=1000, help="The newest so many.")] = 50,
    all_: Annotated[bool, typer.Option("--all", help="All, from the first.")] = False,
    actor: Annotated[str, typer.Option(help="Only by this tenant.")] = "",
    action: Annotated[
        str, typer.Option(help="Only this, e.g. model.create; `model.` = all that begin so.")
    ] = "",
    subject: Annotated[str, typer.Option(help="Only about this, e.g. smollm2@3.")] = "",
) -> None:
    """List what was changed, by whom, the newest last."""
    from llmos.api.storage.v1 import audit_pb2

    request = audit_pb2.ListEntriesRequest(
        page_size=1000 if all_ else number,
        newest=not all_,
        actor=actor,
        action=action,
        subject=subject,
    )
    rows, value = [], []
    for entry in _entries(session, request):
        detail = json.loads(entry.detail_json)
        text = " ".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in detail.items())
        shown = text if len(text) <= 80 else text[:77] + "..."
        stamp = when(entry.at_unix_ms / 1000)
        rows.append([str(entry.seq), stamp, entry.actor, entry.action, entry.subject, shown])
        members = as_value(entry)
        value.append({**members, "detail": detail} | {"detail_json": members["detail_json"]})
    session.out.rows(["SEQ", "TIME", "ACTOR", "ACTION", "SUBJECT", "DETAIL"], rows, value)


def _entries(
    session: Session, request: audit_pb2.ListEntriesRequest
) -> Iterator[audit_pb2.AuditEntry]:
    from llmos.api.storage.v1 import audit_pb2_grpc

    stub = session.kernel(audit_pb2_grpc.AuditStub)
    while True:
        page = stub.ListEntries(request, timeout=session.limit(QUICK_S))
        yield from page.entries
        if not page.more:
            return
        request.after_seq = page.entries[-1].seq


@command(app, examples=["llmos-ctl audit head >> /a/safe/place"])
def head(session: Session) -> None:
    """Print the end of the log, SEQ:HASH; note it elsewhere, and `verify` finds a cut end."""
    from llmos.api.storage.v1 import audit_pb2, audit_pb2_grpc

    stub = session.kernel(audit_pb2_grpc.AuditStub)
    reply = stub.GetHead(audit_pb2.GetHeadRequest(), timeout=session.limit(QUICK_S))
    session.out.say(f"{reply.seq}:{reply.hash}", as_value(reply))


@command(app, examples=["llmos-ctl audit export audit.jsonl"])
def export(
    session: Session,
    file: Annotated[Path, typer.Argument(help="The file to write; - = stdout.")],
    after: Annotated[
        int, typer.Option(min=0, max=UINT64, help="Only entries after this number.")
    ] = 0,
) -> None:
    """Write the log to a file, one JSON object a line; check it by `audit verify FILE`."""
    from llmos.api.storage.v1 import audit_pb2, audit_pb2_grpc

    stub = session.kernel(audit_pb2_grpc.AuditStub)
    replies = stub.ExportLog(audit_pb2.ExportLogRequest(after_seq=after), timeout=session.limit())
    if str(file) == "-":
        for reply in replies:
            sys.stdout.buffer.write(reply.data)
        return
    done = after
    partial = file.with_name(file.name + ".part")
    try:
        with partial.open("wb") as output, count_bar("entries") as show:
            for reply in replies:
                output.write(reply.data)
                done = reply.done
                show(done - after, reply.total - after)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    session.out.say(f"Wrote {done - after} entries to {file}.", {"entries": done - after})


@command(
    app,
    examples=[
        "llmos-ctl audit verify                    # what the running server has",
        "llmos-ctl audit verify audit.jsonl --head 1200:9f86d0...",
    ],
)
def verify(
    session: Session,
    file: Annotated[
        Path | None,
        typer.Argument(help="An export; needs no server. [default: the server's log]"),
    ] = None,
    heads: Heads = None,
) -> None:
    """Check that the log is what was written; an edited, lost or moved entry is named."""
    end = _offline(file, heads or []) if file else _online(session, heads or [])
    said = f"The log is intact: {end['entries']} entries, head {end['seq']}:{end['hash']}."
    session.out.say(said, end)


def _online(session: Session, heads: list[str]) -> dict[str, Any]:
    from llmos.api.storage.v1 import audit_pb2, audit_pb2_grpc

    stub = session.kernel(audit_pb2_grpc.AuditStub)
    reply = stub.VerifyLog(audit_pb2.VerifyLogRequest(heads=heads), timeout=session.limit())
    return {**as_value(reply), "entries": reply.seq}


def _offline(file: Path, heads: list[str]) -> dict[str, Any]:
    from llmos.lib.chain import Head, Verifier, damaged, read_line

    anchors = [Head.parse(text) for text in heads]
    verifier, count = Verifier(anchors=anchors), 0
    try:
        with file.open("rb") as lines, count_bar("bytes") as show:
            total, done = file.stat().st_size, 0
            for count, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    raise damaged(f"line {count}", "it is cut off")
                try:
                    text = line.decode()
                except UnicodeDecodeError:
                    raise damaged(f"line {count}", "it is not UTF-8") from None
                entry = read_line(text, count)
                if count == 1 and entry.seq > 1:  # a part, by `export --after`
                    verifier = Verifier(Head(entry.seq - 1, entry.previous), anchors)
                verifier.take(entry)
                done += len(line)
                if count % 1000 == 0:
                    show(done, total)
    except OSError as exc:
        kind = NotFound if isinstance(exc, FileNotFoundError) else InvalidArgument
        raise kind("NO_SUCH_FILE", f"Cannot read {file}: {exc.strerror}.") from exc
    end = verifier.finish()
    return {"seq": end.seq, "hash": end.hash, "entries": count}
