"""The file of one unfinished upload: what was received, hashed as it came."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmos.lib import failpoint
from llmos.lib.errors import Aborted, DataLoss, OutOfRange
from llmos.servers.storage.blobs.uploads_base import Part
from llmos.servers.storage.crypt.stream import CHUNK, HEADER, TAG, Opener, Sealer, sealed_size
from llmos.servers.storage.disk import writing

_READ = 1 << 20


@dataclass(frozen=True)
class Begun:
    """The row of an upload. received: durable bytes; key: of a sealed file."""

    id: str
    sha256: str
    size: int
    received: int
    key: bytes | None


class Session:
    """An upload's open file. Not thread-safe: hold `lock`."""

    def __init__(self, path: Path, begun: Begun) -> None:
        """Open the file and go on after its durable bytes, which are read and hashed again."""
        self.lock = threading.Lock()
        self.path = path
        self.begun = begun
        self.written = begun.received
        self._digest = hashlib.sha256()
        with writing(path.parent):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._sealer = self._resumed()
            for data in self._durable():
                self._digest.update(data)

    def _resumed(self) -> Sealer | None:
        key, received = self.begun.key, self.begun.received
        if key is None:
            os.ftruncate(self._fd, received)
            os.lseek(self._fd, received, os.SEEK_SET)
            return None
        if self._sealed_all():
            os.lseek(self._fd, 0, os.SEEK_END)
            return Sealer(key, os.pread(self._fd, HEADER, 0), received // CHUNK)
        # Whole chunks are durable, or nothing is.
        end = HEADER + received // CHUNK * (CHUNK + TAG) if received else 0
        os.ftruncate(self._fd, end)
        os.lseek(self._fd, end, os.SEEK_SET)
        header = os.pread(self._fd, HEADER, 0) if received else b""
        return Sealer(key, header, received // CHUNK)

    def _sealed_all(self) -> bool:
        return self.begun.received == self.begun.size and (
            os.fstat(self._fd).st_size == sealed_size(self.begun.size)
        )

    def _durable(self) -> Iterator[bytes]:
        key, received = self.begun.key, self.begun.received
        if key is None:
            for at in range(0, received, _READ):
                yield os.pread(self._fd, min(_READ, received - at), at)
        elif received:
            # To open chunks that are not the last, any larger size will do.
            size = received if self._sealed_all() else received + CHUNK
            opener = Opener(key, os.pread(self._fd, HEADER, 0), size)
            for at in range(0, received, _READ):
                first, start, count = opener.span(at, min(_READ, received - at))
                yield opener.open(first, os.pread(self._fd, count, start))[0]

    def append(self, part: Part) -> None:
        """Write what is new of `part`. Raises as Uploads.append."""
        if part.crc32 is not None and zlib.crc32(part.data) != part.crc32:
            raise DataLoss(
                "CHUNK_DAMAGED",
                f"The {len(part.data)} bytes at {part.offset} arrived damaged (CRC-32); send them "
                "again.",
                details={"offset": str(self.written)},
            )
        if part.offset > self.written:
            raise Aborted(
                "WRONG_OFFSET",
                f"Bytes at {part.offset} would leave a gap; go on at {self.written}.",
                details={"offset": str(self.written)},
            )
        new = part.data[self.written - part.offset :]
        if self.written + len(new) > self.begun.size:
            raise OutOfRange(
                "BAD_RANGE",
                f"The upload was announced with {self.begun.size} bytes; more came.",
            )
        if new:
            with writing(self.path.parent):
                self._put(new if self._sealer is None else self._sealer.update(new))
            self._digest.update(new)
            self.written += len(new)

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def sync(self) -> int:
        """Make what was written durable; return how many bytes of the whole are.

        Of a sealed file, only whole chunks are, until the whole has come.
        """
        with writing(self.path.parent):
            durable = self.written
            if self._sealer is not None:
                if self.written == self.begun.size:
                    if os.fstat(self._fd).st_size < sealed_size(self.begun.size):
                        self._put(self._sealer.finish())
                else:
                    durable -= self._sealer.held
                    durable -= durable % CHUNK
            os.fdatasync(self._fd)
        failpoint.hit("upload.synced")
        return durable

    def finish(self) -> str:
        """Make the whole durable and read-only; return its digest."""
        self.sync()
        with writing(self.path.parent):
            os.fchmod(self._fd, 0o444)
            os.fsync(self._fd)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
