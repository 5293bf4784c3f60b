"""What is checked before files are used: signed, where that is required, and not tampered with."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from llmos.servers.storage.blobs import damaged
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.disk import CHUNK
from llmos.servers.storage.model import File, Version
from llmos.servers.storage.signing.base import signed_by
from llmos.servers.storage.signing.book import SignatureBook

Stamp = tuple[int, int, int, int, int]


class Guard:
    """Lets versions through to callers that load them. Blocking; thread-safe.

    A file is read and hashed when this process sees it for the first time or its stamp (device,
    inode, size, times of change) has changed, and only looked up (one stat) after that: whatever
    writes to a file changes its ctime, which no user can set. What changes under a file without a
    write, on the disk itself, is for the scrub to find.
    """

    def __init__(self, database: Database, public_key: bytes = b"") -> None:
        """public_key: PEM of the key that must have signed what is loaded; b"" = any or none."""
        self._book = SignatureBook(database)
        self._key = public_key
        self._seen: dict[str, Stamp] = {}
        self._lock = threading.Lock()

    def admit(self, version: Version) -> None:
        """Return when the version may be loaded. Raises NOT_SIGNED, DATA_LOSS BLOB_DAMAGED."""
        if self._key:
            signed_by(self._book, version, self._key)
        for file in version.files:
            if file.path is not None:  # else its bytes are checked as they are read
                self._check(file, file.path)

    def _check(self, file: File, path: Path) -> None:
        try:
            stamp = _stamp(os.stat(path))
            with self._lock:
                if self._seen.get(file.sha256) == stamp:
                    return
            digest = hashlib.sha256()
            with path.open("rb", buffering=0) as content:
                while data := content.read(CHUNK):
                    digest.update(data)
                after = _stamp(os.fstat(content.fileno()))
        except OSError as exc:
            raise damaged(file.sha256, exc.strerror or "not there") from exc
        if digest.hexdigest() != file.sha256:
            raise damaged(file.sha256, f"{file.name} was changed")
        with self._lock:
            if after == stamp:
                self._seen[file.sha256] = stamp


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
