"""One blob: is it what its digest says? If not, into quarantine with it, or heal it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Generator
from pathlib import Path

from llmos.lib import failpoint
from llmos.lib.errors import DataLoss
from llmos.servers.storage.blobs import rows
from llmos.servers.storage.blobs.reader import Bytes
from llmos.servers.storage.blobs.staging import Staged
from llmos.servers.storage.blobs.store import Blobs
from llmos.servers.storage.disk import CHUNK, sync_dir, writing
from llmos.servers.storage.upkeep.base import Finding, Kind

log = logging.getLogger(__name__)


def digest(opened: Bytes) -> Generator[int, None, str]:
    """Read a blob, yield the bytes done in each step, return its sha256. Raises BLOB_DAMAGED."""
    found = hashlib.sha256()
    for offset in range(0, opened.size, CHUNK):
        data = opened.read(offset, min(CHUNK, opened.size - offset))
        found.update(data)
        yield len(data)
    if not opened.size:
        return opened.digest()
    return found.hexdigest()


def check(blobs: Blobs, row: rows.Row, quick: bool) -> Generator[int, None, Finding | None]:
    """Check one blob, yielding the bytes done; return what is wrong. Changes nothing.

    quick: compare sizes only. A blob that was deleted meanwhile is fine.
    """
    try:
        with blobs.open(row.sha256) as opened:
            found = row.sha256 if quick else (yield from digest(opened))
    except DataLoss as exc:
        if exc.reason != "BLOB_DAMAGED":
            raise
        missing = "No such file" in exc.message or row.fault.endswith("gone")
        return _finding(blobs, row, Kind.MISSING if missing else Kind.DAMAGED, exc.message)
    if found != row.sha256:
        return _finding(blobs, row, Kind.DAMAGED, f"its bytes have the sha256 {found}")
    return None


def _finding(blobs: Blobs, row: rows.Row, kind: Kind, what: str) -> Finding:
    with blobs.db.read() as sql:
        harms = tuple(rows.harms(sql, row.sha256))
    return Finding(kind, row.sha256, what, "", harms)


def heal(blobs: Blobs, row: rows.Row) -> bool:
    """Make a damaged blob again from a sound copy in this store; return whether there was one."""
    own = blobs.file(row.sha256)
    for path in (own, blobs.cache.folder / row.sha256):
        if row.wrapped_key is None and _sound(path, row):
            with blobs.staging() as staging:
                writer = staging.writer()
                with path.open("rb") as file:
                    while data := file.read(CHUNK):
                        writer.write(data)
                staged = writer.finish()
                _again(blobs, row, staged)
            return True
    return False


def _again(blobs: Blobs, row: rows.Row, staged: Staged) -> None:
    with blobs.db.lock, blobs.db.write() as sql:
        rows.set_fault(sql, row.sha256, "it is being made again")
    with blobs.placing([staged]):
        pass


def _sound(path: Path, row: rows.Row) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == row.sha256
    except OSError:
        return False


def quarantine(blobs: Blobs, folder: Path, row: rows.Row, why: str) -> None:
    """Move a damaged file aside; its blob counts as not stored until its bytes come again."""
    file = blobs.file(row.sha256, row.wrapped_key is not None)
    with blobs.db.lock:
        with blobs.db.write() as sql:
            rows.set_fault(sql, row.sha256, why[:500])
        failpoint.hit("quarantine.rows")
        blobs.cache.drop(row.sha256)
        if row.form == rows.FILE and file.exists():
            with writing(folder):
                folder.mkdir(exist_ok=True, mode=0o700)
                file.rename(folder / f"{file.name}.{int(time.time())}")
                sync_dir(folder)
    log.error("a blob is damaged", extra={"sha256": row.sha256, "cause": why})


def sound(blobs: Blobs, row: rows.Row, at: float) -> None:
    """Remember that a blob was found as it should be."""
    with blobs.db.write() as sql:
        rows.set_checked(sql, row.sha256, at)
        if row.fault:
            rows.clear_fault(sql, row.sha256)
