"""The log files of processes: rotation, last lines, following, and the crash log."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

CRASH_LINES = 50
_CRASH_CAP = 1 << 20
_BLOCK = 1 << 16
_POLL_S = 0.2


def file_name(process: str) -> str:
    """Return the file name of a process's log."""
    return process.replace("/", "+") + ".log"


def available(folder: Path) -> dict[str, Path]:
    """Return the logs there are, by process name (crash logs as `<name>.crash`)."""
    return {path.stem.replace("+", "/"): path for path in sorted(folder.glob("*.log"))}


def rotate(path: Path, cap: int) -> None:
    """Set a file over `cap` bytes aside as `<file>.1`, replacing an older one."""
    try:
        if path.stat().st_size > cap:
            path.replace(path.with_name(path.name + ".1"))
    except FileNotFoundError:
        return


def size(path: Path) -> int:
    """Return a file's size, 0 when it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def tail(path: Path, count: int, since: int = 0) -> tuple[list[str], int]:
    """Return the last `count` complete or final lines after byte `since`, and the file's size."""
    try:
        with path.open("rb") as file:
            end = start = file.seek(0, os.SEEK_END)
            data = b""
            while start > since and data.count(b"\n") <= count:
                step = min(_BLOCK, start - since)
                start -= step
                file.seek(start)
                data = file.read(step) + data
    except OSError:
        return [], 0
    return data.decode(errors="replace").splitlines()[-count:], end


def last_words(lines: list[str]) -> str:
    """Return what a process said last for people: its last line, or that JSON line's message."""
    for line in reversed(lines):
        if line.strip():
            try:
                parsed = json.loads(line)
            except ValueError:
                return line.strip()
            return str(parsed.get("message", line)) if isinstance(parsed, dict) else line.strip()
    return ""


def note_crash(log: Path, pid: int, how: str, since: int) -> None:
    """Append to `<name>.crash.log` when and how a process ended and its last lines.

    Raises OSError.
    """
    lines, _ = tail(log, CRASH_LINES, since)
    path = log.with_name(log.stem + ".crash.log")
    rotate(path, _CRASH_CAP)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with path.open("a") as file:
        file.write(f"=== {stamp} pid {pid}: {how}\n")
        file.writelines(f"    {line}\n" for line in lines)


async def follow(path: Path, count: int) -> AsyncIterator[list[str]]:
    """Yield a file's last `count` lines, then new ones as they come, for ever.

    Goes on with the new file when the file is rotated.
    """
    lines, position = tail(path, count)
    yield lines
    inode, rest = _inode(path), b""
    while True:
        await asyncio.sleep(_POLL_S)
        if _inode(path) != inode or size(path) < position:
            inode, position, rest = _inode(path), 0, b""
        if size(path) == position:
            continue
        with path.open("rb") as file:
            file.seek(position)
            data = rest + file.read(_BLOCK)
            position = file.tell()
        *whole, rest = data.split(b"\n")
        if whole:
            yield [line.decode(errors="replace") for line in whole]


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
