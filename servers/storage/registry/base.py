"""The interfaces of aliases and version leases, which the conformance suite tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence

from llmos.servers.storage.registry.model import (
    Alias,
    AliasMove,
    AliasPage,
    MovePage,
    VersionLease,
)


class Aliases(ABC):
    """Names that mean one version of a model and move; every move has the next revision.

    expected: the alias's revision, 0 = it is not there, None = whatever it is. Where it is
    another one, Aborted ALIAS_MOVED; but the retry of a move that was made is that move. All
    raise BAD_NAME; writes also what Storage's writes raise.
    """

    @abstractmethod
    async def set_alias(
        self, model: str, alias: str, version: int, expected: int | None = None
    ) -> tuple[Alias, int]:
        """Point it; return it and the version it pointed at before, 0 = none.

        Raises NO_SUCH_MODEL, NO_SUCH_VERSION, ALIAS_MOVED.
        """

    @abstractmethod
    async def rollback_alias(self, model: str, alias: str, expected: int) -> tuple[Alias, int]:
        """Take back its newest move; return it and the version it pointed at before.

        Raises NO_SUCH_MODEL, NO_SUCH_ALIAS, ALIAS_MOVED, FailedPrecondition NOTHING_BEFORE.
        """

    @abstractmethod
    async def delete_alias(self, model: str, alias: str, expected: int | None = None) -> bool:
        """Remove it; return whether it was there. Raises ALIAS_MOVED."""

    @abstractmethod
    async def list_aliases(self, model: str, page_size: int, page_token: str) -> AliasPage:
        """Return a page by model and alias; model "" = all. Raises BAD_PAGE."""

    @abstractmethod
    async def list_moves(self, model: str, alias: str, page_size: int, page_token: str) -> MovePage:
        """Return a page of its history, newest first. Raises BAD_PAGE, NO_SUCH_ALIAS."""

    @abstractmethod
    def watch_aliases(
        self, model: str, alias: str, after: int | None
    ) -> AsyncGenerator[AliasMove, None]:
        """Yield where the watch starts, then the moves after revision `after` (None = now).

        model, alias: only of these, "" = of all. Raises OutOfRange BAD_REVISION, and Unavailable
        STOPPING when the server is about to stop.
        """


class VersionLeases(ABC):
    """Whoever has a lease on a version keeps it from being deleted."""

    @abstractmethod
    async def acquire_lease(
        self, ref: str, holder: str, ttl_s: float, request_id: str = ""
    ) -> VersionLease:
        """Take a lease for `ttl_s` seconds.

        Raises BAD_NAME, BAD_TTL, NO_SUCH_MODEL, NO_SUCH_VERSION, NO_SUCH_ALIAS.
        """

    @abstractmethod
    async def renew_lease(self, id: str) -> VersionLease:
        """Start its time anew. Raises NO_SUCH_LEASE."""

    @abstractmethod
    async def release_lease(self, id: str) -> bool:
        """Give it back; return whether it was there."""

    @abstractmethod
    async def list_leases(self, ref: str) -> Sequence[VersionLease]:
        """Return those that have not run out, of one version or all ("").

        Raises BAD_NAME, NO_SUCH_MODEL, NO_SUCH_VERSION, NO_SUCH_ALIAS.
        """
