"""The store as a whole: space, checks, collection, backup and restore, keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl import quota
from llmos.clients.ctl.output import as_value, short_name, size, when
from llmos.clients.ctl.progress import bar, note, status
from llmos.clients.ctl.session import QUICK_S, UINT64, Session, command
from llmos.lib.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound

if TYPE_CHECKING:
    from llmos.api.storage.v1 import maintenance_pb2, maintenance_pb2_grpc

app = typer.Typer(help="Space, checks, collection, backups, quotas and keys.", no_args_is_help=True)
app.add_typer(quota.app, name="quota")
_PIECE = 256 << 10
_DAMAGED = "DAMAGED"


def _stub(session: Session) -> maintenance_pb2_grpc.MaintenanceStub:
    from llmos.api.storage.v1 import maintenance_pb2_grpc

    return session.kernel(maintenance_pb2_grpc.MaintenanceStub)


@command(app, watch=True)
def df(session: Session) -> None:
    """Show what is stored, what it takes on the disk, and what could go."""
    from llmos.api.storage.v1 import maintenance_pb2 as pb

    found = _stub(session).Df(pb.DfRequest(), timeout=session.limit(QUICK_S))
    saved = found.blob_bytes - found.stored_bytes
    pairs = {
        "blobs": f"{found.blobs}, {size(found.blob_bytes)} in all",
        "on the disk": size(found.stored_bytes)
        + (f", {size(saved)} saved by shared tensors" if saved > 0 else ""),
        "unused": f"{size(found.unused_bytes)} (`llmos-ctl storage gc` frees what is old enough)",
        "copies": f"{size(found.cache_bytes)} for reading by path; they can go at any time",
        "uploads": f"{size(found.upload_bytes)} of unfinished ones",
        "quarantine": f"{found.damaged_blobs} damaged blobs, {size(found.quarantine_bytes)}",
        "free": f"{size(found.free_bytes)} of {size(found.disk_bytes)}",
        "encrypted": "yes" if found.encrypted else "no",
        "checked": when(found.scrubbed_unix_s) or "not all of it yet",
        "direct": found.direct_address,
    }
    session.out.fields({k: v for k, v in pairs.items() if v}, as_value(found))


@command(app, examples=["llmos-ctl storage fsck", "llmos-ctl storage fsck --repair"])
def fsck(
    session: Session,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what can be, quarantine the rest.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare sizes only; do not read the files.")
    ] = False,
) -> None:
    """Check that every stored byte is what it should be. Exits with 11 when it is not."""
    from llmos.api.storage.v1 import maintenance_pb2 as pb

    request = pb.FsckRequest(repair=repair, quick=quick)
    findings, summary = [], pb.FsckSummary()
    with bar() as show:
        for step in _stub(session).Fsck(request, timeout=session.limit()):
            if step.HasField("progress"):
                show(step.progress.stage, step.progress.done_bytes, step.progress.total_bytes)
            elif step.HasField("finding"):
                findings.append(step.finding)
            else:
                summary = step.summary
    value = {**as_value(summary), "details": [as_value(finding) for finding in findings]}
    _print_findings(session, findings)
    left = summary.findings - summary.repaired
    checked = f"{summary.blobs} blobs, {size(summary.checked_bytes)} read"
    if not summary.findings:
        session.out.say(f"Sound: {checked}.", value)
        return
    session.out.say(
        f"{summary.findings} findings, {summary.repaired} put right, "
        f"{summary.quarantined} blobs in quarantine: {checked}.",
        value,
    )
    if left:
        raise DataLoss(_DAMAGED, _cure(repair))


def _cure(repair: bool) -> str:
    if repair:
        return "Bring in the same bytes again (import the model again) to heal what is left."
    return "Something is not as it should be; `llmos-ctl storage fsck --repair` puts it right."


def _print_findings(session: Session, findings: list[maintenance_pb2.Finding]) -> None:
    if session.json:
        return
    for finding in findings:
        kind = short_name(finding.DESCRIPTOR.fields_by_name["kind"].enum_type, finding.kind)
        harms = f" (harms {', '.join(finding.harms)})" if finding.harms else ""
        done = f"; {finding.done}" if finding.done else ""
        note(f"{kind}: {finding.subject[:40]}: {finding.what}{harms}{done}")


@command(app, examples=["llmos-ctl storage gc", "llmos-ctl storage gc --older-than 0"])
def gc(
    session: Session,
    older_than: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds that uploads without a version are spared.",
            show_default="the server's",
        ),
    ] = None,
) -> None:
    """Delete what nothing needs: blobs without a version, old uploads, copies."""
    from llmos.api.storage.v1 import maintenance_pb2 as pb

    with status("collecting"):
        request = pb.CollectGarbageRequest(grace_s=older_than)
        done = _stub(session).CollectGarbage(request, timeout=session.limit())
    said = f"{done.blobs} blobs and {done.uploads} uploads are gone, {size(done.freed_bytes)} free."
    session.out.say(said, as_value(done))


@command(app)
def scrub(
    session: Session,
    rate: Annotated[
        int, typer.Option(min=0, max=UINT64, help="At most so many bytes a second; 0 = no limit.")
    ] = 0,
    older_than: Annotated[
        float, typer.Option(min=0, help="Only what was not checked in so many seconds.")
    ] = 0,
) -> None:
    """Read blobs and compare them with their digests; damaged ones go into quarantine.

    The server does the same by itself, slowly.
    """
    from llmos.api.storage.v1 import maintenance_pb2 as pb

    request = pb.ScrubRequest(bytes_per_s=rate, older_than_s=older_than)
    findings, done = [], 0
    with bar() as show:
        for step in _stub(session).Scrub(request, timeout=session.limit()):
            if step.HasField("progress"):
                done = step.progress.done_bytes
                show(step.progress.stage, done, step.progress.total_bytes)
            else:
                findings.append(step.finding)
    _print_findings(session, findings)
    value = {"checked_bytes": done, "details": [as_value(finding) for finding in findings]}
    session.out.say(f"{size(done)} read, {len(findings)} blobs damaged.", value)
    if findings:
        raise DataLoss(_DAMAGED, _cure(True))


@command(app, examples=["llmos-ctl storage backup store.tar"])
def backup(
    session: Session,
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file.")] = False,
) -> None:
    """Write the whole store into one file: models, data sets, state, audit log.

    Encrypted files stay encrypted in it: keep the key file as well, elsewhere.
    """
    from llmos.api.storage.v1 import maintenance_pb2 as pb

    if file.exists() and not force:
        raise AlreadyExists("FILE_EXISTS", f"{file} is there already; --force overwrites it.")
    part = file.with_name(f"{file.name}.part")
    written = 0
    try:
        with part.open("wb") as target, bar() as show:
            for step in _stub(session).Backup(pb.BackupRequest(), timeout=session.limit()):
                if step.HasField("progress"):
                    last = step.progress
                    show(last.stage, last.done_bytes, last.total_bytes)
                else:
                    written += target.write(step.data)
            target.flush()
            os.fsync(target.fileno())
        part.replace(file)
    except OSError as exc:
        raise InvalidArgument("CANNOT_WRITE", f"Cannot write {file}: {exc.strerror}.") from exc
    finally:
        part.unlink(missing_ok=True)
    session.out.say(f"{file} has it all, {size(written)}.", {"file": str(file), "bytes": written})


@command(app, examples=["llmos-ctl storage restore store.tar"])
def restore(
    session: Session, file: Annotated[Path, typer.Argument(help="A file of `backup`.")]
) -> None:
    """Fill an empty store from a backup; it is checked before anything is changed."""
    from llmos.api.storage.v1 import maintenance_pb2 as pb

    def pieces(show: Any) -> Iterator[pb.RestoreRequest]:
        total, done = file.stat().st_size, 0
        with file.open("rb") as source:
            while data := source.read(_PIECE):
                done += len(data)
                show("restoring", done, total)
                yield pb.RestoreRequest(data=data)
            show("checking", done, total)

    if not file.is_file():
        raise NotFound("NO_SUCH_FILE", f"There is no file {file}.")
    with bar() as show:
        reply = _stub(session).Restore(pieces(show), timeout=session.limit())
    made = when(reply.made_unix_s)
    session.out.say(
        f"Restored {reply.blobs} blobs and {reply.rows} rows of {made}; storage starts anew.",
        as_value(reply),
    )


@command(app)
def rekey(session: Session) -> None:
    """Wrap all keys by the first key of the key file, and encrypt what is still plain.

    To change the key: put a new one above it (see `keygen`), restart storage, run this, remove
    the old one.
    """
    from llmos.api.storage.v1 import maintenance_pb2 as pb

    reply = pb.RekeyResponse()
    with bar() as show:
        for reply in _stub(session).Rekey(pb.RekeyRequest(), timeout=session.limit()):
            step = reply.progress
            show(step.stage, step.done_bytes, step.total_bytes)
    said = f"{reply.rewrapped} keys wrapped anew, {reply.sealed} files encrypted."
    session.out.say(said, {"rewrapped": reply.rewrapped, "sealed": reply.sealed})


@command(app, examples=["llmos-ctl storage keygen storage.key"])
def keygen(
    session: Session, file: Annotated[Path, typer.Argument(help="The key file to make.")]
) -> None:
    """Make a key file for `llmos-storage --encryption-key FILE`. Who loses it loses the store."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise AlreadyExists(
            "FILE_EXISTS", f"{file} is there already; to change keys, put a new one on its top."
        ) from None
    except OSError as exc:
        raise InvalidArgument("CANNOT_WRITE", f"Cannot write {file}: {exc.strerror}.") from exc
    with os.fdopen(fd, "w") as target:
        target.write(
            f"# LLM OS storage: the first key is used for what is new\n{os.urandom(32).hex()}\n"
        )
    session.out.say(f"{file} has a new key; keep a copy of it.", {"file": str(file)})
