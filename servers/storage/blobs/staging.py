"""Unfinished files: copied or uploaded under temporary names, hashed on the way, made durable."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmos.lib import failpoint
from llmos.lib.errors import Cancelled, DataLoss, NotFound
from llmos.servers.storage.crypt.keys import KeyRing
from llmos.servers.storage.crypt.stream import KEY, Sealer
from llmos.servers.storage.disk import CHUNK, require_room, writing
from llmos.servers.storage.model import File

_FLUSH = 256 << 20  # bytes written before the disk has to have them

Tick = Callable[[int], None]  # called with the bytes just done; may raise Cancelled


class Known(Protocol):
    """What staging asks of the store: is this file there already?"""

    def has_size(self, size: int) -> bool:
        """Return whether a blob of this size is stored."""

    def pin(self, sha256: str) -> bool:
        """Hold a stored blob; False when it is not stored."""

    def path(self, sha256: str) -> Path:
        """Return where a blob can be read."""

    def readable(self, staged: Staged) -> Path:
        """Return where the bytes of a finished temporary file can be read."""


@dataclass(frozen=True)
class Staged:
    """A finished temporary file; sealed when it has a (wrapped) key. size: plain bytes."""

    sha256: str
    size: int
    path: Path
    wrapped_key: bytes | None = None


class Writer:
    """One temporary file being written. `write` and `close` may be called from any thread."""

    def __init__(self, path: Path, keys: KeyRing | None = None) -> None:
        """Create the file; with `keys`, what is written is sealed."""
        self._path = path
        self._keys = keys
        self._key = os.urandom(KEY)
        self._sealer = Sealer(self._key) if keys is not None else None
        self._digest = hashlib.sha256()
        self._size = 0
        self._unflushed = 0
        self._lock = threading.Lock()
        with writing(path.parent):
            self._file = path.open("xb", buffering=0)

    def write(self, data: bytes) -> None:
        """Append. Raises DISK_FULL, READ_ONLY, or Cancelled when closed meanwhile."""
        with self._lock:
            if self._file.closed:
                raise Cancelled("CANCELLED", "The upload was given up.")
            with writing(self._path.parent):
                self._put(data if self._sealer is None else self._sealer.update(data))
                self._unflushed += len(data)
                if self._unflushed >= _FLUSH:
                    # Else it all comes at the end, in one fsync that shows no progress for minutes.
                    os.fdatasync(self._file.fileno())
                    self._unflushed = 0
            self._digest.update(data)
            self._size += len(data)

    def finish(self) -> Staged:
        """Make the bytes durable and read-only."""
        sha256 = self._digest.hexdigest()
        failpoint.hit("file.written")
        with self._lock, writing(self._path.parent):
            if self._sealer is not None:
                self._put(self._sealer.finish())
            os.fchmod(self._file.fileno(), 0o444)
            os.fsync(self._file.fileno())
            self._file.close()
        failpoint.hit("file.synced")
        wrapped = self._keys.wrap(self._key, sha256) if self._keys is not None else None
        return Staged(sha256, self._size, self._path, wrapped)

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def close(self) -> None:
        """Give up; a write in progress ends first."""
        with self._lock:
            self._file.close()


class Staging:
    """A folder of unfinished files of one operation. Made by `Blobs.staging`."""

    def __init__(self, folder: Path, known: Known, keys: KeyRing | None = None) -> None:
        """Use an empty folder that the maker removes; with `keys`, its files are sealed."""
        self.folder = folder
        self._known = known
        self._keys = keys
        self._writers: list[Writer] = []
        self.staged: list[Staged] = []
        self.pinned: list[str] = []

    def writer(self) -> Writer:
        """Return a new temporary file."""
        writer = Writer(self.folder / str(len(self._writers)), self._keys)
        self._writers.append(writer)
        return writer

    def close(self) -> None:
        """Close what is open."""
        for writer in self._writers:
            writer.close()

    def upload(self, writer: Writer, sha256: str) -> Staged:
        """Finish an upload. Raises DATA_LOSS DIGEST_MISMATCH when the bytes are others."""
        staged = writer.finish()
        if staged.sha256 != sha256:
            raise DataLoss(
                "DIGEST_MISMATCH",
                f"The {staged.size} bytes received have the sha256 {staged.sha256}, not {sha256}; "
                "send them again.",
            )
        self.staged.append(staged)
        return staged

    def add(self, name: str, source: Path, tick: Tick) -> File:
        """Bring in a file from this host; File.path is where its bytes are until the end.

        A file that is stored already is only read. Raises NO_SUCH_SOURCE, DISK_FULL, READ_ONLY.
        """
        with _open(source) as fd:
            size = os.fstat(fd.number).st_size
            if self._known.has_size(size):
                sha256 = _hash(fd, tick)
                if self._known.pin(sha256):
                    self.pinned.append(sha256)
                    return File(name, sha256, size, self._known.path(sha256))
                tick(-size)
            require_room(self.folder, size)
            writer = self.writer()
            for data in fd:
                writer.write(data)
                tick(len(data))
        staged = writer.finish()
        self.staged.append(staged)
        return File(name, staged.sha256, staged.size, self._known.readable(staged))


class _open:
    """A regular file opened for reading in chunks; errors name the source."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _open:
        try:
            self.number = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as exc:
            raise unreadable(self.path, exc.strerror or "not there") from exc
        if not stat.S_ISREG(os.fstat(self.number).st_mode):
            os.close(self.number)
            raise unreadable(self.path, "it is not a regular file")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.number)

    def __iter__(self) -> _open:
        os.lseek(self.number, 0, os.SEEK_SET)
        return self

    def __next__(self) -> bytes:
        try:
            data = os.read(self.number, CHUNK)
        except OSError as exc:
            raise unreadable(self.path, exc.strerror or "read error") from exc
        if not data:
            raise StopIteration
        return data


def _hash(file: _open, tick: Tick) -> str:
    digest = hashlib.sha256()
    for data in file:
        digest.update(data)
        tick(len(data))
    return digest.hexdigest()


def unreadable(path: Path, why: str) -> NotFound:
    """Return the error for a source that cannot be read."""
    return NotFound("NO_SUCH_SOURCE", f"Cannot read {path} ({why}); give a model file or folder.")
