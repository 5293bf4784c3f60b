"""Copies of blobs for reading by path, where a blob has no plain file of its own.

They may go at any time but those that were handed out a short while ago; a process that has one
open or mapped keeps it. Nothing here is durable: after a reboot the cache is emptied.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from llmos.lib.errors import FailedPrecondition, ResourceExhausted
from llmos.servers.storage.disk import disk_full, writing

log = logging.getLogger(__name__)
SPARED_S = 600.0  # how long a path that was handed out stays
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MARGIN = 64 << 20  # bytes that are left free


def default_cache(store: Path, encrypted: bool) -> Path:
    """Return where copies go: beside the blobs, or, of sealed ones, where no disk is.

    Memory may still be swapped out: encrypt the swap as well, or have none.
    """
    memory = Path("/dev/shm")
    if not encrypted or not memory.is_dir():
        return store / "cache"
    digest = hashlib.sha256(os.fsencode(store.absolute())).hexdigest()[:12]
    return memory / f"llmos-storage-{os.getuid()}-{digest}"


class Cache:
    """A folder of files called by their digests, the least recently used go first. Thread-safe."""

    def __init__(self, folder: Path, limit: int = 0) -> None:
        """Use `folder` (0700), at most `limit` bytes of it; 0 = as the disk allows.

        Raises READ_ONLY, FailedPrecondition UNSAFE_CACHE when the folder is somebody else's.
        """
        self.folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                raise FailedPrecondition(
                    "UNSAFE_CACHE", f"{folder} belongs to somebody else; set another --cache-dir."
                )
            folder.chmod(0o700)
            self._after_boot()

    def _after_boot(self) -> None:
        """Empty the folder when the machine was started anew; remove what a crash left."""
        mark = self.folder / "boot"
        try:
            boot = _BOOT.read_text()
        except OSError:
            boot = uuid.uuid4().hex  # cannot tell: take it for a new one
        old = mark.read_text() if mark.exists() else ""
        for file in self.folder.iterdir():
            if old != boot or file.name.startswith("."):
                file.unlink()
        mark.write_text(boot)

    def get(self, sha256: str, size: int) -> Path | None:
        """Return the copy of a blob, None when there is none; it is spared for a while now."""
        path = self.folder / sha256
        with contextlib.suppress(OSError):
            if path.stat().st_size == size:
                os.utime(path)
                return path
        return None

    def make(self, sha256: str, size: int, fill: Callable[[int], None]) -> Path:
        """Return the copy of a blob; when there is none, `fill` writes it to a file descriptor.

        Raises what `fill` raises, DISK_FULL.
        """
        with self._lock:
            making = self._making.setdefault(sha256, threading.Lock())
        with making:
            if path := self.get(sha256, size):
                return path
            temporary = self.folder / f".{uuid.uuid4().hex}"
            with self._lock:
                self._make_room(size)
            with writing(self.folder):
                fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    fill(fd)
                    os.fchmod(fd, 0o400)
                    temporary.rename(self.folder / sha256)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
                finally:
                    os.close(fd)
        with self._lock:
            self._making.pop(sha256, None)
        return self.folder / sha256

    def _make_room(self, size: int) -> None:
        """Drop the least recently used copies until `size` more bytes may come."""
        files = sorted(self._files(), key=lambda entry: entry[1].st_mtime)
        used = sum(stat.st_size for _, stat in files)
        free = shutil.disk_usage(self.folder).free
        for path, stat in files:
            if not self._too_many(used + size, free - size):
                return
            if stat.st_mtime > time.time() - SPARED_S:
                break
            path.unlink(missing_ok=True)
            used, free = used - stat.st_size, free + stat.st_size
        if free - size < _MARGIN:
            raise disk_full(self.folder, f"a copy of {size:,} bytes is needed to read by path")
        if self._limit and used + size > self._limit:
            raise ResourceExhausted(
                "CACHE_FULL",
                f"All {self._limit:,} bytes of the cache hold files that are in use; raise "
                "--cache-bytes, or try again in some minutes.",
                retry_after_s=SPARED_S,
            )

    def _too_many(self, used: int, free: int) -> bool:
        return free < _MARGIN or bool(self._limit and used > self._limit)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.name != "boot" and not path.name.startswith("."):
                    found.append((path, path.stat()))
        return found

    def usage(self) -> int:
        """Return the bytes of all copies."""
        return sum(stat.st_size for _, stat in self._files())

    def drop(self, sha256: str) -> None:
        """Remove the copy of a blob that is deleted or damaged."""
        (self.folder / sha256).unlink(missing_ok=True)

    def trim(self) -> int:
        """Drop all copies that nobody was handed a while ago; return the bytes freed."""
        freed = 0
        with self._lock:
            for path, stat in self._files():
                if stat.st_mtime <= time.time() - SPARED_S:
                    path.unlink(missing_ok=True)
                    freed += stat.st_size
        return freed
