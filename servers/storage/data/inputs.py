"""The files of a source: found without following links, opened, unpacked, counted."""

from __future__ import annotations

import io
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from llmos.lib.errors import NotFound
from llmos.servers.storage.data.faults import bad_data

MAX_DEPTH = 16  # folders within folders
_FREE = 64 << 20  # bytes that gzip may expand to in any case
_RATIO = 200  # beyond that, times its size: gzip can do 1,032, text rarely 20
_SPLIT = re.compile(r"(train|validation|valid|val|dev|test|t10k)(?![a-z])", re.I)
_CALLED = {"valid": "validation", "val": "validation", "dev": "validation", "t10k": "test"}

Tick = Callable[[int], None]  # called with the bytes just read; may raise Cancelled


def no_tick(count: int) -> None:
    """Count nothing."""


@dataclass(frozen=True)
class Input:
    """One file of a source. name: relative to the source; label, split: by its folders and name.

    opener: gives its bytes as a seekable file.
    """

    name: str
    opener: Callable[[], BinaryIO]
    size: int
    label: str = ""
    split: str = ""

    def raw(self, tick: Tick = no_tick) -> Counted:
        """Open its bytes as they are; seekable. Raises NO_SUCH_SOURCE."""
        return Counted(self.opener(), tick)

    def open(self, tick: Tick = no_tick) -> io.RawIOBase:
        """Open its bytes, unpacked when they are gzip. Raises BAD_DATA_FILE while being read."""
        file = self.raw(tick)
        packed = file.peek(2) == b"\x1f\x8b"
        return Gunzip(file, self.name) if packed else file

    def head(self, size: int) -> bytes:
        """Return its first bytes, unpacked."""
        data = b""
        with self.open() as file:
            while len(data) < size and (piece := file.read(size - len(data))):
                data += piece
        return data


class Counted(io.RawIOBase):
    """A file whose bytes are counted as they are read the first time."""

    def __init__(self, file: BinaryIO, tick: Tick) -> None:
        """Own `file`."""
        self._file = file
        self._tick = tick
        self._counted = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read at most len(buffer) bytes."""
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        at = self._file.tell()
        if at > self._counted:
            self._tick(at - self._counted)
            self._counted = at
        return int(count or 0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def peek(self, size: int) -> bytes:
        """Return the first bytes without counting them."""
        data = self._file.read(size)
        self._file.seek(0)
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class Gunzip(io.RawIOBase):
    """The bytes in a gzip file, as a stream; refuses what expands too far."""

    def __init__(self, file: Counted, name: str) -> None:
        """Own `file`; errors name it `name`."""
        self._file = file
        self._name = name
        self._engine = zlib.decompressobj(31)
        self._ahead = b""
        self._taken = 0
        self._given = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Unpack at most len(buffer) bytes. Raises BAD_DATA_FILE."""
        if not len(buffer):
            return 0
        while True:
            if not self._ahead:
                self._ahead = self._file.read(256 << 10) or b""
                self._taken += len(self._ahead)
                if not self._ahead:
                    if self._engine.eof or not self._taken:
                        return 0
                    raise self._bad("the gzip data is cut", "fetch the file again")
            if self._engine.eof:  # another member follows, or padding
                if not self._ahead.strip(b"\0"):
                    self._ahead = b""
                    continue
                self._engine = zlib.decompressobj(31)
            try:
                data = self._engine.decompress(self._ahead, len(buffer))
            except zlib.error as exc:
                raise self._bad("the gzip data is damaged", "fetch the file again") from exc
            eof = self._engine.eof
            self._ahead = self._engine.unused_data if eof else self._engine.unconsumed_tail
            self._given += len(data)
            if self._given > _FREE and self._given > _RATIO * self._taken:
                raise self._bad(
                    f"it expands to over {_RATIO} times its size", "unpack it and import the file"
                )
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _bad(self, fault: str, cure: str) -> Exception:
        return bad_data(self._name, fault, cure)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def open_file(path: Path, *, follow: bool = False) -> BinaryIO:
    """Open a regular file; never waits, as a pipe would. Raises OSError, or NO_SUCH_SOURCE."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise unreadable(path, "it is not a regular file")
    return cast(BinaryIO, os.fdopen(fd, "rb"))


def unreadable(path: Path, why: str) -> NotFound:
    """Return the error for a source that cannot be read."""
    return NotFound("NO_SUCH_SOURCE", f"Cannot read {path} ({why}); give a data file or folder.")


def split_of(name: str) -> str:
    """Return the split that a file or folder name says; "" = none."""
    found = _SPLIT.match(name)
    word = found[1].lower() if found else ""
    return _CALLED.get(word, word)


def walk(root: Path) -> Iterator[Input]:
    """Yield the files below a folder by name, hidden ones not. Raises BAD_DATA_FILE at a link."""
    for parts, size in _walk(root, ()):
        folders, name = parts[:-1], "/".join(parts)
        split = split_of(folders[0]) if folders else ""
        labels = folders[1:] if split else folders
        yield Input(
            name,
            _opener(root.joinpath(*parts)),
            size,
            labels[0] if labels else "",
            split or split_of(parts[-1]),
        )


def _opener(path: Path) -> Callable[[], BinaryIO]:
    def opener() -> BinaryIO:
        try:
            return open_file(path)
        except OSError as exc:
            raise unreadable(path, exc.strerror or "not there") from exc

    return opener


def _walk(folder: Path, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as exc:
        raise unreadable(folder, exc.strerror or "not there") from exc
    for entry in entries:
        if entry.name.startswith("."):
            continue
        inner = (*parts, entry.name)
        name = "/".join(inner)
        if not entry.name.isprintable():  # also: a name that is not UTF-8
            raise bad_data(ascii(name), "its name is not printable text", "rename it")
        if entry.is_symlink():
            raise bad_data(name, "it is a link", "put the file itself in the folder")
        if entry.is_dir(follow_symlinks=False):
            if len(inner) > MAX_DEPTH:
                raise bad_data(name, f"it is over {MAX_DEPTH} folders deep", "flatten the folder")
            yield from _walk(folder / entry.name, inner)
        elif entry.is_file(follow_symlinks=False):
            yield inner, entry.stat(follow_symlinks=False).st_size
        else:
            raise bad_data(name, "it is neither a file nor a folder", "remove it")
