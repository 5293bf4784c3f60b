"""The disk: durable writes, and what its errors mean."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmos.lib.errors import FailedPrecondition, ResourceExhausted

CHUNK = 1 << 20
_MARGIN = 4 << 20  # room for the registry itself beside a model
_SMALLEST = 64 << 10  # bytes; what SQLite needs beside its file to open it
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOENT}


def disk_full(place: Path | str, why: str = "no room is left") -> ResourceExhausted:
    """Return the error for a full disk."""
    return ResourceExhausted(
        "DISK_FULL", f"{place}: {why}; free some space or move the state directory and try again."
    )


def read_only(place: Path | str, why: str) -> FailedPrecondition:
    """Return the error for a state directory that cannot be written."""
    return FailedPrecondition(
        "READ_ONLY",
        f"Cannot write {place} ({why}); make the state directory writable or name another by "
        "--state-dir or LLMOS_STATE_DIR.",
    )


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn errors of writing below `place` into DISK_FULL and READ_ONLY."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise disk_full(place, (exc.strerror or "no room is left").lower()) from exc
        if exc.errno in _READ_ONLY:
            raise read_only(exc.filename or place, exc.strerror or "no access") from exc
        raise


def require_room(place: Path, size: int) -> None:
    """Raise DISK_FULL now when `size` bytes cannot fit, rather than after filling the disk."""
    free = shutil.disk_usage(place).free
    if size + _MARGIN > free:
        raise disk_full(place, f"{size:,} bytes are needed and {free:,} are free")


def is_full(place: Path) -> bool:
    """Return whether there is not even room for the registry's smallest file."""
    return shutil.disk_usage(place).free < _SMALLEST


def sync_dir(path: Path) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
