"""What is known about one buffer, and the words for who holds it."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

LEASE_S = 30.0
MAX_LEASE_S = 3600.0
PLAIN = "grpc:"


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
    leases: dict[str, float] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """Return the process that created it."""
        return process_of(self.creator)

    def opens_with(self, token: bytes) -> bool:
        """Return whether `token` is right; takes the same time when it is not."""
        return hmac.compare_digest(bytes.fromhex(self.token), token)


@dataclass
class Buffer:
    """A record in use. `deadlines`: lessee -> when its lease ends, on the store's clock."""

    record: Record
    deadlines: dict[str, float] = field(default_factory=dict)


def process_of(lessee: str) -> str:
    """Return the process behind a lessee: all clients in one instance are one process."""
    return lessee if lessee.startswith(PLAIN) else lessee.partition("/")[0]


def lease_time(wanted_s: float) -> float:
    """Return the lease to give, seconds; 0 asks for the default."""
    return min(wanted_s or LEASE_S, MAX_LEASE_S)
