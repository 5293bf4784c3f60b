"""Owns the directory of buffer files and their sidecar records, and nothing about leases.

    <root>/llmos-<uid>-<hash of the state directory>/      0700
        lock            held by flock by the one memory server of the state directory
        owner.json      state directory and host, for the sweep of directories left behind
        <id>            a buffer's bytes, 0600; 0400 when sealed
        <id>.json       its record, replaced atomically; a buffer without one was never handed out
        <id>.spare      there while a buffer is offered and not taken, see `offers`

Everything here is as volatile as shared memory: records of an earlier boot are dropped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llmos.lib.errors import DataLoss, FailedPrecondition, ResourceExhausted
from llmos.lib.host import host_id
from llmos.servers.memory.devices import available_ram
from llmos.servers.memory.record import Record

SHM = Path("/dev/shm")
_PIECE = 256 << 20  # bytes allocated at a time
_RAM_S = 0.05  # asking what RAM is free takes longer than all else of creating a small buffer
PIECE = 256 << 10
_ZEROS = memoryview(bytes(1 << 20))
PAGE = os.sysconf("SC_PAGE_SIZE")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG}


def locate(shm_dir: str, state_dir: Path, run_dir: Path) -> Path:
    """Return the directory for the buffers of `state_dir`; nothing is made."""
    root = Path(shm_dir) if shm_dir else SHM
    if not shm_dir and not (SHM.is_dir() and os.access(SHM, os.W_OK | os.X_OK)):
        return run_dir / "shm"
    digest = hashlib.sha256(os.fsencode(state_dir.absolute())).hexdigest()[:12]
    return root / f"llmos-{os.getuid()}-{digest}"


def charge(size: int) -> int:
    """Return what a buffer of `size` bytes costs: whole pages, and one for its record."""
    return -(-size // PAGE) * PAGE + PAGE


class Directory:
    """One open buffer directory. A second one on the same path is refused while this is open."""

    def __init__(self, path: Path, state_dir: Path) -> None:
        """Make and lock it, and remove what dead LLM OSes left beside it.

        Raises FailedPrecondition ALREADY_RUNNING, UNSAFE_SHM_DIR or READ_ONLY.
        """
        self.path = path
        self._root = str(path)
        self._ram, self._ram_at = 0, -math.inf  # what was free when it was asked, less what is used
        self._lock = _acquire(path)
        owner = path / "owner.json"
        with contextlib.suppress(OSError, ValueError):
            if _boot(str(json.loads(owner.read_text())["host"])) != _boot(host_id()):
                for file in path.iterdir():
                    if file.name != "lock":
                        file.unlink()
        owner.write_text(json.dumps({"state_dir": str(state_dir), "host": host_id()}))
        if path.parent == SHM:
            _sweep(path)

    def close(self) -> None:
        """Unlock; remove the directory when no buffer is left in it."""
        if not any(self.path.glob("*[0-9a-f].json")):
            for name in ("owner.json", "lock"):
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody put a file there: not ours to remove
                self.path.rmdir()
        os.close(self._lock)

    def total(self) -> int:
        """Return the size of the file system, bytes."""
        info = os.statvfs(self.path)
        return info.f_blocks * info.f_frsize

    def room(self) -> int:
        """Return the bytes that the file system, and the RAM behind a memory one, have free."""
        info = os.statvfs(self._root)
        free = info.f_bavail * info.f_frsize
        if self.path.parent != SHM:
            return free
        now = time.monotonic()
        if now - self._ram_at > _RAM_S:
            self._ram, self._ram_at = available_ram(), now
        return min(free, self._ram)

    def file(self, id: str) -> Path:
        """Return the path of a buffer's bytes."""
        return self.path / id

    def allocate(
        self, id: str, size: int, tick: Callable[[], None] | None = None, *, clear: bool = False
    ) -> None:
        """Make a zeroed file whose space is really there. Blocks; leaves nothing behind on error.

        `tick` is called after each piece that is there. clear: write the zeros now, not when pages
        are touched first. Raises ResourceExhausted NO_ROOM. (A sparse file would fit always, and
        then kill whoever touches it with SIGBUS when memory runs out.)
        """
        path = self.file(id)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                info = os.fstatvfs(fd)
                if size > info.f_bavail * info.f_frsize:  # at once, and not when RAM is full of it
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                for start in range(0, size, _PIECE):
                    os.posix_fallocate(fd, start, min(_PIECE, size - start))
                    if tick is not None:
                        tick()
                for start in range(0, size if clear else 0, len(_ZEROS)):
                    os.pwrite(fd, _ZEROS[: size - start], start)
            finally:
                os.close(fd)
            self._ram -= size
        except OSError as exc:
            path.unlink(missing_ok=True)
            raise _full(exc, size) from exc

    def read(self, id: str, start: int, end: int) -> Iterator[bytes]:
        """Yield a file's bytes in pieces of at most PIECE. Raises DataLoss TRUNCATED."""
        with self.file(id).open("rb", buffering=0) as file:
            while start < end:
                # Memory, not a disk: reading here is quicker than handing it to a thread.
                data = os.pread(file.fileno(), min(PIECE, end - start), start)
                if not data:
                    raise DataLoss("TRUNCATED", f"Buffer {id} was cut by a process writing to it.")
                start += len(data)
                yield data

    def save(self, record: Record, *, first: bool = False) -> None:
        """Write a record, atomically. Raises ResourceExhausted NO_ROOM.

        first: nobody was told of the buffer yet, so half a record would do no harm: see `load`.
        """
        final = f"{self._root}/{record.id}.json"
        path = final if first else f"{self._root}/{record.id}.tmp"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                data = json.dumps(vars(record)).encode()
                if os.write(fd, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(fd)
            if not first:
                os.replace(path, final)
        except OSError as exc:
            Path(path).unlink(missing_ok=True)
            raise _full(exc, PAGE) from exc

    def load(self) -> Iterator[Record]:
        """Yield the records of complete buffers, oldest first; remove what is half there."""
        found: dict[str, Record] = {}
        for path in self.path.glob("*.json"):
            with contextlib.suppress(ValueError, TypeError):
                record = Record(**json.loads(path.read_text()))
                if path.stem == record.id and self.whole(record):
                    found[record.id] = record
        for id in [id for id, record in found.items() if record.offered and self.take_back(id)]:
            del found[id]
        for path in self.path.iterdir():
            if path.name not in ("lock", "owner.json") and (
                path.stem not in found or path.suffix not in ("", ".json")
            ):
                path.unlink()
        yield from sorted(found.values(), key=lambda r: r.created)

    def whole(self, record: Record) -> bool:
        """Return whether its file is there with all its bytes; also notes whether it is sealed."""
        try:
            info = os.stat(f"{self._root}/{record.id}")
        except FileNotFoundError:
            return False
        record.sealed = not info.st_mode & stat.S_IWUSR  # the file knows, whatever was saved
        return info.st_size == record.size

    def offer(self, old: str, record: Record) -> None:
        """Make the file of `old` that of `record`, which its client is to claim by the marker.

        Raises ResourceExhausted NO_ROOM; then neither is there any more.
        """
        self.forget(old)
        os.rename(f"{self._root}/{old}", f"{self._root}/{record.id}")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(self.marker(record.id), flags, 0o600))
            self.save(record, first=True)
        except (OSError, ResourceExhausted) as exc:
            self.take_back(record.id)
            self.remove(record.id)
            raise (_full(exc, PAGE) if isinstance(exc, OSError) else exc) from exc

    def marker(self, id: str) -> str:
        """Return the path of the file that is there while an offer stands."""
        return f"{self._root}/{id}.spare"

    def offered(self, id: str) -> bool:
        """Return whether nobody took a buffer that was offered."""
        return os.path.exists(self.marker(id))

    def take_back(self, id: str) -> bool:
        """End an offer; False when it was taken."""
        try:
            os.unlink(self.marker(id))
        except FileNotFoundError:
            return False
        return True

    def seal(self, id: str) -> None:
        """Make a buffer's file read-only."""
        self.file(id).chmod(0o400)

    def remove(self, id: str) -> None:
        """Remove a buffer; mappings of it stay valid. The record goes first: see `load`."""
        self.forget(id)
        self.file(id).unlink(missing_ok=True)

    def forget(self, id: str) -> None:
        """Remove a buffer's record, after which its file is nobody's."""
        (self.path / f"{id}.json").unlink(missing_ok=True)


def _full(exc: OSError, size: int) -> Exception:
    if exc.errno not in _FULL:
        return exc
    return ResourceExhausted(
        "NO_ROOM",
        f"The buffers' file system has no room for {size:,} bytes ({exc.strerror}); free buffers "
        "or give it more room.",
    )


def _boot(host: str) -> str:
    return host.split("/")[1]


def _acquire(path: Path) -> int:
    while True:
        _private(path)
        try:
            fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # its last owner removed the directory just now
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino == (path / "lock").stat().st_ino:
                return fd
            os.close(fd)
        except FileNotFoundError:
            os.close(fd)
        except BlockingIOError as exc:
            os.close(fd)
            raise FailedPrecondition(
                "ALREADY_RUNNING",
                f"Another memory server owns {path}; stop it or use another --state-dir.",
            ) from exc


def _private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        info = path.lstat()
    except OSError as exc:
        raise FailedPrecondition(
            "READ_ONLY",
            f"Cannot make {path} ({exc.strerror}); name a writable directory by --shm-dir.",
        ) from exc
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise FailedPrecondition(
            "UNSAFE_SHM_DIR", f"{path} belongs to somebody else; remove it or use --shm-dir."
        )
    path.chmod(0o700)


def _sweep(ours: Path) -> None:
    """Remove directories beside `ours` whose state directory is gone and that nobody serves."""
    for path in ours.parent.glob(f"llmos-{os.getuid()}-*"):
        try:
            if path == ours or path.lstat().st_uid != os.getuid():
                continue
            owner = json.loads((path / "owner.json").read_text())
            if owner["host"] != host_id() or Path(owner["state_dir"]).exists():
                continue  # of another mount namespace, where paths mean something else; or in use
            lock = _acquire(path)
        except (OSError, ValueError, KeyError, TypeError, FailedPrecondition):
            continue  # not ours to judge, or served right now
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
