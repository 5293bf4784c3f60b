"""The interface of storage: what `service.py` serves and what the conformance suite tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

from llmos.servers.storage.model import Draft, Filters, Page, Progress, Registered, Version
from llmos.servers.storage.registry.model import LineageWalk

READ_CHUNK = 256 << 10  # bytes of one message: under the kernel's frame limit, over its overhead

ALL = Filters()


class Storage(ABC):
    """Immutable model versions made of content-addressed files.

    Digests are sha256 in lower-case hex; sizes are bytes. Every write is durable when it returns,
    and leaves nothing behind when it raises or is cancelled. All raise FailedPrecondition
    READ_ONLY or ResourceExhausted DISK_FULL when the disk does not take a write.
    """

    @abstractmethod
    def import_model(self, source: str, name: str) -> AsyncGenerator[Progress | Registered, None]:
        """Register a file, a folder or `pkg:NAME` of this host; yield progress, then the version.

        name: "" = derived from the source. Raises BAD_NAME, BAD_MODEL_FILE, PICKLE_REFUSED,
        NO_SUCH_SOURCE, MISSING_EXTRA.
        """

    @abstractmethod
    async def create_version(self, draft: Draft) -> Registered:
        """Register a version of blobs that are stored; description and sizes are read from them.

        Raises BAD_NAME, BAD_DIGEST, BAD_MODEL_FILE, PICKLE_REFUSED, NO_SUCH_BLOB.
        """

    @abstractmethod
    async def get_version(self, ref: str) -> Version:
        """Return what `name`, `name@version` or `name@alias` means.

        Raises BAD_NAME, NO_SUCH_MODEL, NO_SUCH_VERSION, NO_SUCH_ALIAS.
        """

    @abstractmethod
    async def list_versions(
        self, name: str, page_size: int, page_token: str, filters: Filters = ALL
    ) -> Page:
        """Return a page, by name, newest first; name "" = all.

        Versions that come or go between two pages shift no other one. Raises BAD_NAME, BAD_TAG,
        BAD_PAGE.
        """

    @abstractmethod
    async def delete_version(self, ref: str, force: bool) -> int:
        """Delete `name@version` and the files that only it has; return the bytes freed.

        force: though it has children, and with its aliases; never under a lease. Raises BAD_NAME,
        NO_SUCH_MODEL, NO_SUCH_VERSION, IN_USE.
        """

    @abstractmethod
    async def set_tags(
        self, ref: str, added: Mapping[str, str], removed: Sequence[str]
    ) -> Mapping[str, str]:
        """Change the tags of `name@version`; return all that it has then.

        Raises BAD_NAME, BAD_TAG, NO_SUCH_MODEL, NO_SUCH_VERSION.
        """

    @abstractmethod
    async def lineage(self, ref: str, descendants: bool, max_depth: int) -> LineageWalk:
        """Walk back to what a version was made from, or on to what was made from it.

        max_depth: steps, 0 = to the end. Raises as get_version.
        """

    @abstractmethod
    async def write_blob(self, sha256: str, data: AsyncIterator[bytes]) -> tuple[int, bool]:
        """Store bytes; return (size, whether it was there before; then `data` is not read).

        Raises BAD_DIGEST, DIGEST_MISMATCH.
        """

    @abstractmethod
    def read_blob(
        self, sha256: str, offset: int, length: int, piece: int = READ_CHUNK
    ) -> AsyncGenerator[bytes, None]:
        """Yield a range (length 0 = to the end), at most `piece` bytes at a time.

        Raises BAD_DIGEST, NO_SUCH_BLOB, BAD_RANGE, BLOB_DAMAGED.
        """

    @abstractmethod
    async def stat_blobs(self, digests: Sequence[str]) -> list[int]:
        """Return the size of each, -1 for those not stored. Raises BAD_DIGEST."""
