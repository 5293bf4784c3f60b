"""Shared-memory segments of clients, which the operator allowed by `shm_allow` in [execution].

They are POSIX shared memory, found by name among the system's segments; nothing else is opened: no
path, link, directory or device. They are read and written, never mapped: a client that cuts its
segment must not kill a worker (SIGBUS).
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from llmos.lib.errors import InvalidArgument, NotFound, OutOfRange

FOLDER = Path("/dev/shm")
_NAME = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9._-]{0,199})")
_BUFFERS = "llmos-"  # names of the directories of buffers


def name_of(key: str) -> str:
    """Return the name of the segment that a key stands for; "" when it is no name of one."""
    match = _NAME.fullmatch(key)
    return "" if match is None or match[1].startswith(_BUFFERS) else match[1]


def is_allowed(name: str, patterns: str) -> bool:
    """Return whether a name matches one of the comma-separated shell patterns."""
    wanted = [p.strip().removeprefix("/") for p in patterns.split(",")]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted if pattern)


def check(name: str, offset: int, size: int) -> None:
    """Raise NotFound NO_SUCH_SEGMENT, InvalidArgument BAD_REGION, OutOfRange BAD_RANGE."""
    with _open(name, os.O_RDWR) as file:
        _within(name, os.fstat(file).st_size, offset, size)


def read(name: str, offset: int, size: int) -> bytes:
    """Return bytes of a segment. Raises as `check`."""
    with _open(name, os.O_RDONLY) as file:
        data = os.pread(file, size, offset)
        _within(name, offset + len(data), offset, size)
        return data


def write(name: str, offset: int, data: bytes) -> None:
    """Put bytes into a segment; it never grows. Raises as `check`."""
    with _open(name, os.O_RDWR) as file:
        _within(name, os.fstat(file).st_size, offset, len(data))
        os.pwrite(file, data, offset)


@contextlib.contextmanager
def _open(name: str, mode: int) -> Iterator[int]:
    try:
        file = os.open(FOLDER / name, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise NotFound(
            "NO_SUCH_SEGMENT",
            f"There is no shared memory {name!r} on this host; create it before it is registered.",
        ) from exc
    except OSError as exc:
        raise InvalidArgument(
            "BAD_REGION", f"Shared memory {name!r} cannot be opened ({exc.strerror})."
        ) from exc
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise InvalidArgument("BAD_REGION", f"{name!r} is not a segment of shared memory.")
        yield file
    finally:
        os.close(file)


def _within(name: str, there: int, offset: int, size: int) -> None:
    if offset + size > there:
        raise OutOfRange(
            "BAD_RANGE",
            f"{size:,} bytes from byte {offset:,} do not fit in shared memory {name!r} of "
            f"{there:,} bytes.",
        )
