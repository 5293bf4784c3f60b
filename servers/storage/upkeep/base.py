"""The interface of upkeep: what `service.py` serves and the conformance suite tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """What kind of thing a finding is; the numbers are those of the proto."""

    UNSPECIFIED = 0
    LEFTOVER = 1
    MISSING = 2
    DAMAGED = 3
    DATABASE = 4


@dataclass(frozen=True)
class Step:
    """How far long work is. total_bytes: 0 = not known yet."""

    stage: str
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. done: what was done about it, "" = nothing."""

    kind: Kind
    subject: str
    what: str
    done: str = ""
    harms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What a check found in all."""

    blobs: int
    checked_bytes: int
    findings: int
    repaired: int
    quarantined: int


@dataclass(frozen=True)
class Space:
    """What is stored and what it takes, bytes; see DfResponse for each. scrubbed: Unix time."""

    blobs: int
    blob_bytes: int
    stored_bytes: int
    unused_bytes: int
    cache_bytes: int
    upload_bytes: int
    quarantine_bytes: int
    damaged_blobs: int
    free_bytes: int
    disk_bytes: int
    encrypted: bool
    scrubbed: float


@dataclass(frozen=True)
class Collected:
    """What a collection freed."""

    blobs: int
    freed_bytes: int
    uploads: int


@dataclass(frozen=True)
class Restored:
    """What a backup held. made: Unix time it was made."""

    blobs: int
    rows: int
    made: float


@dataclass(frozen=True)
class Rekeyed:
    """How far a change of keys is."""

    step: Step
    rewrapped: int
    sealed: int


class Maintenance(ABC):
    """Work on the store as a whole. One at a time: others raise Aborted BUSY.

    All but `df` raise FailedPrecondition READ_ONLY or ResourceExhausted DISK_FULL when the disk
    does not take a write. Generators stop their work when they are closed.
    """

    @abstractmethod
    async def df(self) -> Space:
        """Tell what is stored and what it takes."""

    @abstractmethod
    def fsck(self, repair: bool, quick: bool) -> AsyncGenerator[Step | Finding | Summary, None]:
        """Compare rows, files and digests; the summary comes last. quick: sizes only."""

    @abstractmethod
    async def collect(self, grace_s: float | None) -> Collected:
        """Delete what nothing has needed for `grace_s` (None = the server's). Raises BAD_GRACE."""

    @abstractmethod
    def scrub(self, bytes_per_s: int, older_than_s: float) -> AsyncGenerator[Step | Finding, None]:
        """Check blobs not checked in `older_than_s`, oldest first; 0 bytes a second = no limit."""

    @abstractmethod
    def backup(self) -> AsyncGenerator[Step | bytes, None]:
        """Yield the store as a tar file. Raises BLOB_DAMAGED."""

    @abstractmethod
    async def restore(self, data: AsyncIterator[bytes]) -> Restored:
        """Fill an empty store; changes nothing unless it returns.

        Raises NOT_EMPTY, OTHER_SCHEMA, WRONG_KEY, KEY_NEEDED, BAD_BACKUP.
        """

    @abstractmethod
    def rekey(self) -> AsyncGenerator[Rekeyed, None]:
        """Wrap all keys by the first of the key file, seal plain files.

        Raises KEY_NEEDED, WRONG_KEY.
        """
