"""Placing staged files: as they are, or as pieces of what is stored already."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from llmos.lib import failpoint
from llmos.servers.storage.blobs import rows, sharing
from llmos.servers.storage.blobs.reader import Piece, PlainFile
from llmos.servers.storage.blobs.staging import Staged
from llmos.servers.storage.disk import sync_dir, writing

if TYPE_CHECKING:
    from llmos.servers.storage.blobs.store import Blobs

log = logging.getLogger(__name__)


@dataclass
class Placement:
    """How a staged file will be stored."""

    staged: Staged
    tensors: list[sharing.Tensor] = field(default_factory=list)
    parts: list[Piece] = field(default_factory=list)
    pack: Staged | None = None


def prepare(blobs: Blobs, staged: Staged, held: contextlib.ExitStack) -> Placement:
    """Do the slow part before the lock is taken: find shared tensors, write the pack."""
    made = Placement(staged)
    if staged.size < sharing.WORTH or blobs.sizes([staged.sha256]) != [-1]:
        return made
    path = blobs.readable(staged)
    made.tensors = sharing.scan(path)
    with blobs.db.read() as sql:
        stored = sharing.known(sql, [tensor.digest for tensor in made.tensors])
    mine: list[str] = []
    held.callback(blobs.unpin, mine)
    for source in {sha256 for sha256, _ in stored.values()}:
        if blobs.pin(source):
            mine.append(source)
    stored = {digest: place for digest, place in stored.items() if place[0] in mine}
    plan = sharing.plan(staged.size, made.tensors, stored)
    if plan is None:
        return made
    if plan.own:
        staging = held.enter_context(blobs.staging())
        writer = staging.writer()
        with PlainFile(staged.sha256, staged.size, path) as opened:
            for start, length in plan.own:
                for at in range(start, start + length, 1 << 20):
                    writer.write(opened.read(at, min(1 << 20, start + length - at)))
        made.pack = writer.finish()
    pack = made.pack.sha256 if made.pack else ""
    made.parts = [Piece(p.source or pack, p.start, p.length) for p in plan.pieces]
    made.tensors = plan.tensors
    return made


def place(blobs: Blobs, sql: Connection, made: Placement) -> list[Path]:
    """Link a file into the store and write its rows; return the files that are new."""
    staged = made.staged
    if rows.size(sql, staged.sha256) >= 0:
        rows.touch(sql, staged.sha256)
        return []
    if not made.parts:
        new = _link(blobs, sql, staged)
        sharing.remember(sql, staged.sha256, made.tensors)
        return new
    new = []
    if made.pack is not None:
        if rows.size(sql, made.pack.sha256) < 0:
            new = _link(blobs, sql, made.pack, touched=0)
        sharing.remember(sql, made.pack.sha256, made.tensors)
    rows.add(sql, staged.sha256, staged.size, parts=made.parts)
    return new


def _link(
    blobs: Blobs, sql: Connection, staged: Staged, touched: float | None = None
) -> list[Path]:
    target = blobs.file(staged.sha256, sealed=staged.wrapped_key is not None)
    with writing(blobs.folder):
        if not target.parent.is_dir():
            target.parent.mkdir(mode=0o700)
            sync_dir(blobs.folder)
        failpoint.hit("file.placing")
        target.unlink(missing_ok=True)  # damaged, or left by a crash
        target.hardlink_to(staged.path)
        failpoint.hit("file.linked")
        sync_dir(target.parent)
    failpoint.hit("file.placed")
    rows.add(sql, staged.sha256, staged.size, wrapped_key=staged.wrapped_key, touched=touched)
    return [target]


def unlink(paths: Iterable[Path]) -> None:
    """Remove files whose rows are gone; what cannot be removed goes at the next start."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("cannot remove a file", extra={"path": str(path), "cause": str(exc)})
