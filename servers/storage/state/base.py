"""The interface of small state: what the services serve and what the conformance suite tests.

All of it is the caller's tenant's (`storage.caller`). Writes are durable when they return and
leave nothing behind when they raise; all raise STALE_FENCE when the caller's fence does not hold,
and READ_ONLY, DISK_FULL, DATABASE_UNREACHABLE.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence

from llmos.servers.storage.state.model import (
    Attached,
    Changes,
    Document,
    DocumentPage,
    Keys,
    Lease,
    Lock,
    Outcome,
    Put,
    Transaction,
)


class Documents(ABC):
    """Named bytes with a history."""

    @abstractmethod
    async def get(self, key: str, revision: int = 0) -> tuple[Document, int]:
        """Return a document and the revision read at; revision 0 = now.

        Raises BAD_KEY, NO_SUCH_DOCUMENT, COMPACTED, FUTURE_REVISION.
        """

    @abstractmethod
    async def list(
        self,
        prefix: str = "",
        *,
        revision: int = 0,
        keys_only: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> DocumentPage:
        """Return a page, all pages as of the first's revision.

        Raises BAD_KEY, BAD_PAGE, COMPACTED, FUTURE_REVISION.
        """

    @abstractmethod
    async def put(
        self, put: Put, if_mod_revision: int | None = None, request_id: str = ""
    ) -> Document:
        """Create or replace; return it without value. if_mod_revision 0 = only if not there.

        Raises BAD_KEY, TOO_LARGE, CONFLICT, NO_SUCH_LEASE, QUOTA_EXCEEDED, REQUEST_ID_REUSED.
        """

    @abstractmethod
    async def delete(
        self, keys: Keys, if_mod_revision: int | None = None, request_id: str = ""
    ) -> tuple[int, int]:
        """Delete; return (how many, revision). Raises BAD_KEY, CONFLICT, REQUEST_ID_REUSED."""

    @abstractmethod
    async def run(self, transaction: Transaction) -> Outcome:
        """Run a transaction: all of it or nothing, under one revision.

        Raises BAD_KEY, TOO_LARGE, BAD_TRANSACTION, NO_SUCH_LEASE, QUOTA_EXCEEDED,
        REQUEST_ID_REUSED.
        """

    @abstractmethod
    def watch(self, keys: Keys, start_revision: int = 0) -> AsyncGenerator[Changes, None]:
        """Yield changes from a revision on (0 = what comes after now), whole transactions each.

        The first has none and says that the watch stands. Raises BAD_KEY, COMPACTED, STOPPING.
        """

    @abstractmethod
    async def compact(self, revision: int = 0) -> int:
        """Forget history up to a revision (0 = all); return up to where. Raises FUTURE_REVISION."""


class Leases(ABC):
    """Promises to live: what is attached to a lease goes when it ends."""

    @abstractmethod
    async def grant(self, ttl_ms: int, id: str = "", owner: str = "") -> Lease:
        """Make a lease, or give one its full time again. Raises BAD_LEASE."""

    @abstractmethod
    async def renew(self, id: str) -> Lease:
        """Give a lease its full time again; writes nothing. Raises NO_SUCH_LEASE."""

    @abstractmethod
    async def revoke(self, id: str) -> bool:
        """End a lease with all that is attached; return whether it was there."""

    @abstractmethod
    async def lease(self, id: str) -> Attached:
        """Return a lease and what is attached. Raises NO_SUCH_LEASE."""

    @abstractmethod
    async def leases(self) -> Sequence[Lease]:
        """Return all leases by id."""


class Locks(ABC):
    """Exclusive locks, first come, first served, kept by leases."""

    @abstractmethod
    async def acquire(
        self, name: str, lease: str, *, wait_ms: int = 0, owner: str = "", request_id: str = ""
    ) -> int:
        """Wait for a lock; return its token. A caller that is cancelled gives its place up.

        The same lease and request_id have the same place. Raises BAD_KEY, NO_SUCH_LEASE,
        LOCK_HELD, LOCK_WAIT, STOPPING.
        """

    @abstractmethod
    async def release(self, name: str, token: int) -> bool:
        """Give a place up; return whether it was there. Raises BAD_KEY."""

    @abstractmethod
    async def lock(self, name: str) -> Lock:
        """Return who holds a lock and who waits. Raises BAD_KEY."""

    @abstractmethod
    async def locks(self, prefix: str = "") -> Sequence[Lock]:
        """Return the locks that are held, by name. Raises BAD_KEY."""
