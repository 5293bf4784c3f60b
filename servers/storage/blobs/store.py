"""The blobs: files in blobs/<first two digits>/<sha256>, read-only, never changed, and their rows.

A file comes into being under a temporary name, is fsynced, linked and only then gets its row in
the database; a file without a row is a leftover of a crash and goes at the next start. A blob may
also have no file, but be made of pieces of others, and a file may be sealed (<sha256>.sealed).
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sqlalchemy import Connection, select

from llmos.lib import failpoint
from llmos.lib.errors import NotFound, OutOfRange
from llmos.servers.storage import caller
from llmos.servers.storage.blobs import placement, rows
from llmos.servers.storage.blobs.cache import Cache
from llmos.servers.storage.blobs.reader import (
    Bytes,
    Joined,
    PlainFile,
    SealedFile,
    damaged,
)
from llmos.servers.storage.blobs.staging import Staged, Staging
from llmos.servers.storage.crypt.keys import KeyRing, key_needed
from llmos.servers.storage.db import quota
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables_blobs import blobs
from llmos.servers.storage.disk import writing

SEALED = ".sealed"


class Blobs:
    """The bytes of the store. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        temporary: Path,
        database: Database,
        cache: Cache,
        keys: KeyRing | None = None,
    ) -> None:
        """Keep blobs in `folder` and unfinished ones in `temporary`, on the same file system.

        cache: copies for reading by path. keys: with them, new files are sealed.
        """
        self.folder = folder
        self.temporary = temporary
        self.db = database
        self.cache = cache
        self.keys = keys
        self._pins: Counter[str] = Counter()

    # Asking.

    def file(self, sha256: str, sealed: bool = False) -> Path:
        """Return where a blob's own file is, or would be."""
        return self.folder / sha256[:2] / (sha256 + (SEALED if sealed else ""))

    def sizes(self, digests: Sequence[str]) -> list[int]:
        """Return each blob's size in bytes, -1 for those that are not stored, or damaged."""
        with self.db.read() as sql:
            return [rows.size(sql, digest) for digest in digests]

    def has_size(self, size: int) -> bool:
        """Return whether any blob has this size: only then can a file of it be stored already."""
        with self.db.read() as sql:
            found = sql.execute(select(blobs.c.sha256).where(blobs.c.size == size).limit(1))
            return found.first() is not None

    # Reading.

    def open(self, sha256: str) -> Bytes:
        """Open a blob; the caller closes it, and it stays readable when it is deleted.

        Raises NO_SUCH_BLOB, DATA_LOSS BLOB_DAMAGED, KEY_NEEDED, WRONG_KEY.
        """
        try:
            return self._open(sha256)
        except OSError:  # deleted, sealed or made anew just now?
            with self.db.lock:
                try:
                    return self._open(sha256)
                except OSError as exc:
                    raise damaged(sha256, exc.strerror or "not there") from exc

    def _open(self, sha256: str) -> Bytes:
        with self.db.read() as sql:
            row = rows.get(sql, sha256)
            if row is None:
                raise no_such_blob(sha256)
            parts = rows.parts(sql, sha256) if row.form == rows.PIECES else []
            sources = {part.source: rows.get(sql, part.source) for part in parts}
        if row.fault:
            raise damaged(sha256, row.fault)
        if row.form == rows.FILE:
            return self._open_file(row)
        with contextlib.ExitStack() as undo:
            opened = {}
            for digest, source in sources.items():
                if source is None:  # the foreign key forbids it
                    raise damaged(sha256, f"its source {digest} is gone")
                opened[digest] = self._open_file(source)
                undo.callback(opened[digest].close)
            joined = Joined(sha256, row.size, parts, opened)
            undo.pop_all()
            return joined

    def _open_file(self, row: rows.Row) -> Bytes:
        if row.fault:
            raise damaged(row.sha256, row.fault)
        if row.wrapped_key is None:
            return PlainFile(row.sha256, row.size, self.file(row.sha256))
        key = self.unwrap(row.wrapped_key, row.sha256)
        return SealedFile(row.sha256, row.size, self.file(row.sha256, sealed=True), key)

    def unwrap(self, wrapped: bytes, sha256: str) -> bytes:
        """Return the key of a sealed file. Raises KEY_NEEDED, WRONG_KEY, KEY_DAMAGED."""
        if self.keys is None:
            raise key_needed()
        return self.keys.unwrap(wrapped, sha256)

    def open_range(self, sha256: str, offset: int, length: int) -> tuple[Bytes, int]:
        """Open a blob; return it and the end of a range of it (length 0 = to the blob's end).

        Raises as `open`, and BAD_RANGE.
        """
        opened = self.open(sha256)
        end = offset + length if length else opened.size
        if not offset <= end <= opened.size:
            opened.close()
            raise OutOfRange(
                "BAD_RANGE",
                f"Bytes {offset} to {end} are outside of the blob's {opened.size} bytes.",
            )
        return opened, end

    def path(self, sha256: str) -> Path:
        """Return a file with the blob's bytes, making a copy in the cache where it has none.

        Raises as `open`, DISK_FULL, CACHE_FULL.
        """
        with self.db.read() as sql:
            row = rows.get(sql, sha256)
        if row is None or row.plain:
            return self.file(sha256)
        return self.copy(row)

    def copy(self, row: rows.Row) -> Path:
        """Return the cached copy of a blob, making it if needed. Raises as `path`."""
        if found := self.cache.get(row.sha256, row.size):
            return found
        with self.open(row.sha256) as opened:
            return self._cached(opened)

    def _cached(self, opened: Bytes) -> Path:
        def fill(fd: int) -> None:
            opened.copy_to(fd, 0, opened.size, 0)

        return self.cache.make(opened.sha256, opened.size, fill)

    def readable(self, staged: Staged) -> Path:
        """Return where the bytes of a finished temporary file can be read."""
        if staged.wrapped_key is None:
            return staged.path
        key = self.unwrap(staged.wrapped_key, staged.sha256)
        with SealedFile(staged.sha256, staged.size, staged.path, key) as opened:
            return self._cached(opened)

    def special(self, digests: Sequence[str]) -> dict[str, rows.Row]:
        """Return the rows of those digests that have no plain file: only a copy, on demand."""
        with self.db.read() as sql:
            return rows.special(sql, digests)

    # Holding and placing.

    def stage(self) -> Staging:
        """Return a place for unfinished files; `discard` it at the end in any case."""
        with writing(self.temporary):
            folder = self.temporary / uuid.uuid4().hex
            folder.mkdir(mode=0o700)
        return Staging(folder, self, self.keys)

    def discard(self, staging: Staging) -> None:
        """Remove what was staged, and release what was pinned."""
        staging.close()
        shutil.rmtree(staging.folder, ignore_errors=True)
        self.unpin(staging.pinned)

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
        with self.db.write() as sql:
            rows.touch(sql, sha256)
            return rows.size(sql, sha256)

    def pin(self, sha256: str) -> bool:
        """Keep a blob from being collected until `unpin`; False when it is not stored."""
        with self.db.lock:
            if self.sizes([sha256]) == [-1]:
                return False
            self._pins[sha256] += 1
            return True

    def pinned(self, sha256: str) -> bool:
        """Return whether somebody holds a blob."""
        return self._pins[sha256] > 0

    def unpin(self, digests: Iterable[str]) -> None:
        """Release what was pinned."""
        with self.db.lock:
            self._pins.subtract(digests)
            self._pins = +self._pins

    def place(self, staged: Staged) -> None:
        """Keep a finished upload, on its tenant's account until a version takes it up.

        Raises QUOTA_EXCEEDED.
        """
        with self.placing([staged]) as sql:
            tenant = caller.current().tenant
            quota.charge(sql, tenant, staged.size, kind=quota.UPLOAD, subject=staged.sha256)

    @contextlib.contextmanager
    def placing(self, staged: Iterable[Staged]) -> Iterator[Connection]:
        """Bring staged files into the store and run the block in the transaction of their rows.

        When it raises, the files that were new are gone again and no row has changed.
        """
        new: list[Path] = []
        with contextlib.ExitStack() as held:
            placements = [placement.prepare(self, blob, held) for blob in staged]
            with self.db.lock:
                try:
                    with self.db.write() as sql:
                        for made in placements:
                            new += placement.place(self, sql, made)
                        yield sql
                        failpoint.hit("rows.written")
                except BaseException:  # the rows are rolled back whatever it was; so are the files
                    placement.unlink(new)
                    raise
        failpoint.hit("rows.committed")


def no_such_blob(sha256: str) -> NotFound:
    """Return the error for a digest that is not stored."""
    return NotFound("NO_SUCH_BLOB", f"No blob {sha256} is stored; upload it with WriteBlob first.")
