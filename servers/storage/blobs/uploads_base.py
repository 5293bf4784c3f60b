"""The interface of uploads: what `uploads_service.py` serves and the conformance suite tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Upload:
    """An unfinished upload. offset: durable bytes; expires: Unix time, seconds."""

    id: str
    sha256: str
    size: int
    offset: int
    expires: float


@dataclass(frozen=True)
class Part:
    """Bytes of an upload and where they begin. crc32: of `data`, None = not known."""

    offset: int
    data: bytes
    crc32: int | None = None


class Uploads(ABC):
    """Uploads of the calling tenant, which survive broken connections and restarts.

    All raise FailedPrecondition READ_ONLY or ResourceExhausted DISK_FULL when the disk does not
    take a write.
    """

    @abstractmethod
    async def create(self, sha256: str, size: int) -> Upload | None:
        """Begin, or find what was begun; None when the blob is stored already.

        Raises BAD_DIGEST, QUOTA_EXCEEDED.
        """

    @abstractmethod
    async def append(self, id: str, parts: AsyncIterator[Part]) -> int:
        """Add bytes; return how many are durable. What came before an error is kept.

        Raises NO_SUCH_UPLOAD, WRONG_OFFSET, BAD_RANGE, CHUNK_DAMAGED.
        """

    @abstractmethod
    async def get(self, id: str) -> Upload:
        """Return its state. Raises NO_SUCH_UPLOAD."""

    @abstractmethod
    async def list(self) -> Sequence[Upload]:
        """Return all, those that expire first at the front; at most 1,000."""

    @abstractmethod
    async def commit(self, id: str) -> tuple[str, int]:
        """Make it a blob; return digest and size. Again is OK.

        Raises NO_SUCH_UPLOAD, UPLOAD_INCOMPLETE, DIGEST_MISMATCH.
        """

    @abstractmethod
    async def abort(self, id: str) -> None:
        """Give it up. Again is OK."""
