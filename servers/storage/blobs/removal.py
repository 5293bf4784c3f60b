"""Blobs go: what nobody needs any more, and what a crash left."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import Connection

from llmos.lib import failpoint
from llmos.servers.storage.blobs import rows
from llmos.servers.storage.blobs.placement import unlink
from llmos.servers.storage.blobs.store import SEALED, Blobs

log = logging.getLogger(__name__)


@dataclass
class Dropping:
    """A transaction that deletes. Put digests on the list; see `dropping`."""

    sql: Connection
    digests: list[str] = field(default_factory=list)
    freed_bytes: int = 0  # set at the end: of the files that went


@contextlib.contextmanager
def dropping(blobs: Blobs, grace_s: float) -> Iterator[Dropping]:
    """Run a transaction; of the digests put on the list, those that nobody needs any more go.

    What only they were made of goes with them, unless it was uploaded within `grace_s`. In the
    end the list holds the digests that went.
    """
    with blobs.db.lock:
        with blobs.db.write() as sql:
            drop = Dropping(sql)
            yield drop
            gone: dict[str, rows.Row] = {}
            asked = drop.digests
            while asked:
                free = [
                    row
                    for digest in dict.fromkeys(asked)
                    if digest not in gone and not blobs.pinned(digest)
                    if not rows.used(sql, digest) and (row := rows.get(sql, digest))
                ]
                gone |= {row.sha256: row for row in free}
                digests = [row.sha256 for row in free]
                asked = rows.sources(sql, digests, time.time() - grace_s)
                rows.remove(sql, digests)
            failpoint.hit("drop.rows")
        failpoint.hit("drop.committed")
        unlink(blobs.file(row.sha256, row.wrapped_key is not None) for row in gone.values())
        for digest in gone:
            blobs.cache.drop(digest)
        failpoint.hit("drop.unlinked")
        drop.digests[:] = gone
        drop.freed_bytes = sum(row.size for row in gone.values() if row.form == rows.FILE)


def collect(blobs: Blobs, grace_s: float) -> tuple[int, int]:
    """Delete blobs that nothing has needed for `grace_s`; return how many, and the bytes freed."""
    with dropping(blobs, grace_s) as drop:
        abandoned = drop.sql.execute(rows.unused(time.time() - grace_s))
        drop.digests += [row[0] for row in abandoned]
    return len(drop.digests), drop.freed_bytes


def recover(blobs: Blobs) -> None:
    """Remove what a crash left: unfinished files, files without a row, rows without a file."""
    for left in blobs.temporary.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    with blobs.db.lock, blobs.db.write() as sql:
        known = {row.sha256: row for row in rows.every(sql)}
        found = {file.name: file for file in blobs.folder.glob("*/*")}
        expected = {
            row.sha256 + (SEALED if row.wrapped_key is not None else "")
            for row in known.values()
            if row.form == rows.FILE and not row.fault
        }
        orphans = [file for name, file in found.items() if name not in expected]
        unlink(orphans)
        for row in known.values():
            if row.form == rows.PIECES or row.fault:
                continue
            if blobs.file(row.sha256, row.wrapped_key is not None).name in found:
                continue
            if rows.used(sql, row.sha256):
                log.error("the file of a blob is gone", extra={"sha256": row.sha256})
                rows.set_fault(sql, row.sha256, "its file is gone")
            else:
                rows.remove(sql, [row.sha256])
    if orphans:
        log.info("removed files that a crash left", extra={"files": len(orphans)})
