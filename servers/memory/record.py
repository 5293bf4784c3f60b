"""What is known about one buffer, and the words for who holds it."""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

LEASE_S = 30.0
MAX_LEASE_S = 3600.0
PLAIN = "grpc:"


class Rights(Enum):
    """What a handle is good for."""

    READ = 1
    ALL = 2


@dataclass
class Record:
    """What outlives the memory server about one buffer. `leases`: lessee -> lease time, s."""

    id: str
    token: str
    size: int
    creator: str
    label: str
    created: float  # time.monotonic(), which all processes of one boot share
    request: str = ""
    sealed: bool = False
    tenant: str = ""
    offered: bool = False  # see `offers`; whether it was taken, the directory knows
    # Lessees beside the creator who may have it mapped, or views of what they had mapped.
    strangers: list[str] = field(default_factory=list)
    leases: dict[str, float] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """Return the process that created it."""
        return process_of(self.creator)

    @property
    def reader(self) -> bytes:
        """Return the token of who may only read; the whole token cannot be found from it."""
        return hmac.digest(bytes.fromhex(self.token), b"read", "sha256")[:16]

    def rights(self, token: bytes) -> Rights | None:
        """Return what `token` is good for; takes the same time when it is wrong."""
        whole = hmac.compare_digest(bytes.fromhex(self.token), token)
        reads = hmac.compare_digest(self.reader, token)
        return Rights.ALL if whole else Rights.READ if reads else None


@dataclass
class Buffer:
    """A record in use.

    deadlines: lessee -> when its lease ends, on the store's clock. readers: streams of its bytes.
    """

    record: Record
    deadlines: dict[str, float] = field(default_factory=dict)
    readers: int = 0

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Count a reader meanwhile."""
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1


def process_of(lessee: str) -> str:
    """Return the process behind a lessee: all clients in one instance are one process."""
    return lessee if lessee.startswith(PLAIN) else lessee.partition("/")[0]


def lease_time(wanted_s: float) -> float:
    """Return the lease to give, seconds; 0 asks for the default."""
    return min(wanted_s or LEASE_S, MAX_LEASE_S)
