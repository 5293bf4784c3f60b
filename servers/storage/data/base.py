"""The interface of data sets: what `service.py` serves and what the conformance suite tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator

from llmos.servers.storage.data.model import Chunk, Dataset, Imported, Order, Page, Share
from llmos.servers.storage.model import Progress


class Datasets(ABC):
    """Immutable versions of data sets, each one Parquet file a split.

    Every write is durable when it returns, and leaves nothing behind when it raises or is
    cancelled. All raise FailedPrecondition READ_ONLY or ResourceExhausted DISK_FULL when the disk
    does not take a write.
    """

    @abstractmethod
    def import_dataset(self, order: Order) -> AsyncGenerator[Progress | Imported, None]:
        """Read, clean, split and register a source; yield progress, then the version.

        Raises BAD_NAME, BAD_DATA_FILE, BAD_OPTION, BAD_DIGEST, NO_SUCH_SOURCE, NO_SUCH_BLOB,
        NO_SUCH_DATASET, NO_SUCH_VERSION, QUOTA_EXCEEDED, MISSING_EXTRA.
        """

    @abstractmethod
    async def get(self, ref: str) -> Dataset:
        """Return what `name` (newest) or `name@version` means, with its report.

        Raises BAD_NAME, NO_SUCH_DATASET, NO_SUCH_VERSION.
        """

    @abstractmethod
    async def page(self, name: str, page_size: int, page_token: str) -> Page:
        """Return a page, by name, newest first; name "" = all. Raises BAD_NAME, BAD_PAGE."""

    @abstractmethod
    async def delete(self, ref: str, force: bool) -> int:
        """Delete `name@version` and the files that only it has; return the bytes freed.

        Raises BAD_NAME, NO_SUCH_DATASET, NO_SUCH_VERSION, IN_USE.
        """

    @abstractmethod
    def read(self, share: Share) -> AsyncGenerator[Chunk, None]:
        """Yield a worker's share of a split as an Arrow IPC stream, as fast as it is taken.

        Raises BAD_NAME, NO_SUCH_DATASET, NO_SUCH_VERSION, NO_SUCH_SPLIT, BAD_OPTION, BAD_RANGE,
        BLOB_DAMAGED.
        """
