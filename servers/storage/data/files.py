"""Stored blobs as files that Arrow reads."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO, cast

from llmos.servers.storage.blobs.reader import Bytes


class BlobFile(io.RawIOBase):
    """An open blob as a seekable file, however it is stored; owns it."""

    def __init__(self, blob: Bytes) -> None:
        """Start at its first byte."""
        self._blob = blob
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._blob.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read at most len(buffer) bytes. Raises DATA_LOSS BLOB_DAMAGED."""
        count = max(0, min(len(buffer), self._blob.size - self._at))
        buffer[:count] = self._blob.read(self._at, count)
        self._at += count
        return count

    def close(self) -> None:
        """Close the blob."""
        if not self.closed:
            self._blob.close()
        super().close()


def as_file(blob: Bytes) -> BinaryIO:
    """Return a blob as a file."""
    return cast(BinaryIO, BlobFile(blob))
