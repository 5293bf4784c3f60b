"""Reading blobs, however they are stored: a plain file, a sealed one, or pieces of others."""

from __future__ import annotations

import bisect
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmos.lib.errors import DataLoss
from llmos.servers.storage.crypt.stream import HEADER, Opener, Tampered, sealed_size
from llmos.servers.storage.disk import CHUNK

_ALIGN = 4096  # bytes; what file systems that share extents share


class Bytes(ABC):
    """The bytes of an open blob. They stay readable when the blob is deleted. Thread-safe."""

    def __init__(self, sha256: str, size: int) -> None:
        """Remember digest and size (bytes)."""
        self.sha256 = sha256
        self.size = size

    @property
    def descriptor(self) -> int:
        """Return the descriptor of a file that has just these bytes; -1 where there is none."""
        return -1

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes, which must lie inside. Raises DATA_LOSS BLOB_DAMAGED."""

    @abstractmethod
    def close(self) -> None:
        """Close the files."""

    def __enter__(self) -> Bytes:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def copy_to(self, target: int, offset: int, length: int, at: int) -> None:
        """Copy a range into the file descriptor `target` at byte `at`."""
        while length:
            data = self.read(offset, min(CHUNK, length))
            done = os.pwrite(target, data, at)
            offset, length, at = offset + done, length - done, at + done

    def digest(self) -> str:
        """Read it all and return its sha256."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, CHUNK):
            digest.update(self.read(offset, min(CHUNK, self.size - offset)))
        return digest.hexdigest()


class PlainFile(Bytes):
    """A file with just the bytes."""

    def __init__(self, sha256: str, size: int, path: Path) -> None:
        """Open it. Raises OSError, BLOB_DAMAGED when its size is another."""
        super().__init__(sha256, size)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if os.fstat(self._fd).st_size != size:
            os.close(self._fd)
            raise damaged(sha256, "its size changed")

    @property
    def descriptor(self) -> int:
        """See Bytes."""
        return self._fd

    def read(self, offset: int, length: int) -> bytes:
        """See Bytes."""
        data = os.pread(self._fd, length, offset)
        if len(data) < length:  # the kernel reads less than 2 GiB at a time, or it was cut
            rest = os.pread(self._fd, length - len(data), offset + len(data))
            data += rest
            if len(data) < length:
                raise damaged(self.sha256, "it ends too early")
        return data

    def close(self) -> None:
        """See Bytes."""
        os.close(self._fd)

    def copy_to(self, target: int, offset: int, length: int, at: int) -> None:
        """Copy inside the kernel; file systems with shared extents (XFS, Btrfs) copy nothing."""
        head = -offset % _ALIGN if (offset - at) % _ALIGN == 0 else 0
        for step in (min(head, length), length):
            end = min(step, length)
            while end:
                done = os.copy_file_range(self._fd, target, end, offset, at)
                if not done:
                    raise damaged(self.sha256, "it ends too early")
                offset, at, end, length = offset + done, at + done, end - done, length - done


class SealedFile(Bytes):
    """A file sealed by `crypt.stream`."""

    def __init__(self, sha256: str, size: int, path: Path, key: bytes) -> None:
        """Open it. Raises OSError, BLOB_DAMAGED."""
        super().__init__(sha256, size)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(self._fd).st_size != sealed_size(size):
                raise Tampered("its size changed")
            self._opener = Opener(key, os.pread(self._fd, HEADER, 0), size)
        except Tampered as exc:
            os.close(self._fd)
            raise damaged(sha256, str(exc)) from exc

    def read(self, offset: int, length: int) -> bytes:
        """See Bytes."""
        if not length:
            return b""
        first, start, count = self._opener.span(offset, length)
        try:
            plain, base = self._opener.open(first, os.pread(self._fd, count, start))
        except Tampered as exc:
            raise damaged(self.sha256, str(exc)) from exc
        data = plain[offset - base : offset - base + length]
        if len(data) < length:
            raise damaged(self.sha256, "it ends too early")
        return data

    def close(self) -> None:
        """See Bytes."""
        os.close(self._fd)

    def digest(self) -> str:
        """As Bytes.digest; an empty file's tag is checked as well."""
        if not self.size:
            try:
                self._opener.open(0, os.pread(self._fd, CHUNK, HEADER))
            except Tampered as exc:
                raise damaged(self.sha256, str(exc)) from exc
        return super().digest()


@dataclass(frozen=True)
class Piece:
    """Bytes of a blob that are bytes of another one, `source`."""

    source: str
    start: int
    length: int


class Joined(Bytes):
    """Pieces of other blobs, one after the other."""

    def __init__(
        self, sha256: str, size: int, pieces: Sequence[Piece], sources: dict[str, Bytes]
    ) -> None:
        """Use open `sources`, which it closes in the end."""
        super().__init__(sha256, size)
        self._pieces, self._sources = pieces, sources
        self._starts = []
        total = 0
        for piece in pieces:
            self._starts.append(total)
            total += piece.length
        if total != size:
            raise damaged(sha256, f"its pieces have {total} bytes and not {size}")

    def _parts(self, offset: int, length: int) -> list[tuple[Bytes, int, int]]:
        """Return (source, first byte, bytes) of each part of a range."""
        parts = []
        index = bisect.bisect_right(self._starts, offset) - 1
        while length:
            piece, inside = self._pieces[index], offset - self._starts[index]
            count = min(length, piece.length - inside)
            parts.append((self._sources[piece.source], piece.start + inside, count))
            offset, length, index = offset + count, length - count, index + 1
        return parts

    def read(self, offset: int, length: int) -> bytes:
        """See Bytes."""
        parts = self._parts(offset, length)
        return b"".join(source.read(start, count) for source, start, count in parts)

    def copy_to(self, target: int, offset: int, length: int, at: int) -> None:
        """See Bytes."""
        for source, start, count in self._parts(offset, length):
            source.copy_to(target, start, count, at)
            at += count

    def close(self) -> None:
        """See Bytes."""
        for source in self._sources.values():
            source.close()


def damaged(sha256: str, why: str) -> DataLoss:
    """Return the error for a blob whose file is not what it was."""
    return DataLoss(
        "BLOB_DAMAGED",
        f"The file of blob {sha256} is damaged ({why}); import its model again.",
        details={"sha256": sha256},
    )
