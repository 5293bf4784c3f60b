"""Content-addressed files: blobs/<first two digits>/<sha256>, read-only, never changed.

A file comes into being under a temporary name, is fsynced, renamed and only then gets its row in
the database; a file without a row is a leftover of a crash and goes at the next start.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from sqlalchemy import Connection, delete, exists, insert, select, update

from llmos.lib.errors import DataLoss, NotFound, OutOfRange
from llmos.servers.storage.blobs.staging import Staged, Staging
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables_blobs import blobs
from llmos.servers.storage.db.tables_registry import files
from llmos.servers.storage.disk import sync_dir, writing

log = logging.getLogger(__name__)


class Blobs:
    """The files of the store and their rows. Thread-safe."""

    def __init__(self, folder: Path, temporary: Path, database: Database) -> None:
        """Keep blobs in `folder` and unfinished ones in `temporary`, on the same file system."""
        self.folder = folder
        self._temporary = temporary
        self._db = database
        self._pins: Counter[str] = Counter()

    def path(self, sha256: str) -> Path:
        """Return where a blob is, or would be."""
        return self.folder / sha256[:2] / sha256

    def sizes(self, digests: Sequence[str]) -> list[int]:
        """Return each blob's size in bytes, -1 for those that are not stored."""
        with self._db.read() as sql:
            return [_size(sql, digest) for digest in digests]

    def has_size(self, size: int) -> bool:
        """Return whether any blob has this size: only then can a file of it be stored already."""
        with self._db.read() as sql:
            found = sql.execute(select(blobs.c.sha256).where(blobs.c.size == size).limit(1))
            return found.first() is not None

    def stage(self) -> Staging:
        """Return a place for unfinished files; `discard` it at the end in any case."""
        with writing(self._temporary):
            folder = self._temporary / uuid.uuid4().hex
            folder.mkdir(mode=0o700)
        return Staging(folder, self)

    def discard(self, staging: Staging) -> None:
        """Remove what was staged and not placed, and release what was pinned."""
        staging.close()
        shutil.rmtree(staging.folder, ignore_errors=True)
        with self._db.lock:
            self._pins.subtract(staging.pinned)
            self._pins = +self._pins

    @contextlib.contextmanager
    def staging(self) -> Iterator[Staging]:
        """Give a `stage` that is discarded at the end of the block."""
        staging = self.stage()
        try:
            yield staging
        finally:
            self.discard(staging)

    def touch(self, sha256: str) -> int:
        """Spare a blob from collection for another while; return its size, -1 if not stored."""
        with self._db.write() as sql:
            _touch(sql, sha256)
            return _size(sql, sha256)

    def pin(self, sha256: str) -> bool:
        """Keep a blob from being collected until its staging ends; False when it is not stored."""
        with self._db.lock:
            if self.sizes([sha256]) == [-1]:
                return False
            self._pins[sha256] += 1
            return True

    def place(self, staged: Staged) -> None:
        """Keep a finished upload."""
        with self.placing([staged]):
            pass

    @contextlib.contextmanager
    def placing(self, staged: Iterable[Staged]) -> Iterator[Connection]:
        """Rename staged files into the store and run the block in the transaction of their rows.

        When it raises, the files that were new are gone again and no row has changed.
        """
        new: list[Path] = []
        with self._db.lock:
            try:
                with self._db.write() as sql:
                    for blob in staged:
                        new += self._place(sql, blob)
                    yield sql
            except BaseException:
                _unlink(new)
                raise

    def _place(self, sql: Connection, blob: Staged) -> list[Path]:
        if _size(sql, blob.sha256) >= 0:
            _touch(sql, blob.sha256)
            return []
        target = self.path(blob.sha256)
        with writing(self.folder):
            if not target.parent.is_dir():
                target.parent.mkdir(mode=0o700)
                sync_dir(self.folder)
            blob.path.rename(target)
            sync_dir(target.parent)
        row = {"sha256": blob.sha256, "size": blob.size, "touched": time.time()}
        sql.execute(insert(blobs), row)
        return [target]

    @contextlib.contextmanager
    def dropping(self) -> Iterator[tuple[Connection, list[str]]]:
        """Run a transaction; of the digests put on the list, those that nobody needs any more go.

        The list then holds only the digests whose files went.
        """
        with self._db.lock:
            with self._db.write() as sql:
                digests: list[str] = []
                yield sql, digests
                digests[:] = [d for d in digests if not self._pins[d] and not _used(sql, d)]
                for digest in digests:
                    sql.execute(delete(blobs).where(blobs.c.sha256 == digest))
            _unlink(self.path(digest) for digest in digests)

    def collect(self, grace_s: float) -> int:
        """Delete uploads that no version has taken up within `grace_s`; return how many."""
        with self.dropping() as (sql, digests):
            abandoned = select(blobs.c.sha256).where(
                blobs.c.touched < time.time() - grace_s,
                ~exists().where(files.c.sha256 == blobs.c.sha256),
            )
            digests += sql.execute(abandoned).scalars()
        return len(digests)

    def recover(self) -> None:
        """Remove what a crash left: unfinished files, files without a row, rows without a file."""
        for left in self._temporary.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        with self._db.lock, self._db.write() as sql:
            rows = {row.sha256: row.size for row in sql.execute(select(blobs))}
            found = {file.name: file for file in self.folder.glob("*/*")}
            orphans = [file for digest, file in found.items() if digest not in rows]
            _unlink(orphans)
            for digest, size in rows.items():
                file = found.get(digest)
                if file is not None and file.stat().st_size == size:
                    continue
                if _used(sql, digest):
                    log.error("a blob is damaged or missing", extra={"sha256": digest})
                    continue
                sql.execute(delete(blobs).where(blobs.c.sha256 == digest))
                _unlink([self.path(digest)])
        if orphans:
            log.info("removed files that a crash left", extra={"files": len(orphans)})

    def open(self, sha256: str, offset: int, length: int) -> tuple[BinaryIO, int]:
        """Return (unbuffered file at `offset`, end of the range); the caller closes the file.

        A range that is open stays readable when the blob is deleted. Raises NO_SUCH_BLOB,
        BAD_RANGE, DATA_LOSS BLOB_DAMAGED.
        """
        try:
            file: BinaryIO | None = cast(BinaryIO, self.path(sha256).open("rb", buffering=0))
        except OSError as exc:
            file, why = None, exc.strerror or "not there"
        (size,) = self.sizes([sha256])  # after opening: a blob that is deleted now is still whole
        if file is None:
            raise damaged(sha256, why) if size >= 0 else no_such_blob(sha256)
        end = offset + length if length else size
        try:
            if size < 0:
                raise no_such_blob(sha256)
            if file.seek(0, os.SEEK_END) != size:
                raise damaged(sha256, "its size changed")
            if not offset <= end <= size:
                raise OutOfRange(
                    "BAD_RANGE", f"Bytes {offset} to {end} are outside of the blob's {size} bytes."
                )
            file.seek(offset)
        except BaseException:
            file.close()
            raise
        return file, end


def no_such_blob(sha256: str) -> NotFound:
    """Return the error for a digest that is not stored."""
    return NotFound("NO_SUCH_BLOB", f"No blob {sha256} is stored; upload it with WriteBlob first.")


def damaged(sha256: str, why: str) -> DataLoss:
    """Return the error for a blob whose file is not what it was."""
    return DataLoss(
        "BLOB_DAMAGED", f"The file of blob {sha256} is damaged ({why}); import its model again."
    )


def _size(sql: Connection, sha256: str) -> int:
    size = sql.execute(select(blobs.c.size).where(blobs.c.sha256 == sha256)).scalar()
    return -1 if size is None else size


def _touch(sql: Connection, sha256: str) -> None:
    sql.execute(update(blobs).where(blobs.c.sha256 == sha256).values(touched=time.time()))


def _used(sql: Connection, sha256: str) -> bool:
    using = select(files.c.name).where(files.c.sha256 == sha256).limit(1)
    return sql.execute(using).first() is not None


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:  # the row is gone already; the next start tries again
            log.warning("cannot remove a file", extra={"path": str(path), "cause": str(exc)})
