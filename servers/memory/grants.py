"""What is known of one grant, and what its holder says of it."""

from __future__ import annotations

from dataclasses import dataclass

NORMAL = 3
_START_S, _BYTES_PER_S = 0.2, 1 << 30  # a guess of how long loading takes, until it was measured


@dataclass
class Grant:
    """Room held on a device. Times are on the ledger's clock, sizes in bytes."""

    id: str
    device: str
    bytes: int
    used_bytes: int = 0
    busy: bool = False
    moving: bool = False
    pinned: bool = False
    leases: int = 0
    served: int = 0
    reload_s: float = 0.0
    rank: int = NORMAL
    tenant: str = ""
    last_busy: float = 0.0
    reported: float = 0.0

    @property
    def held_bytes(self) -> int:
        """Return what counts against the budget: who uses more than was granted has that much."""
        return max(self.bytes, self.used_bytes)

    @property
    def model(self) -> str:
        """Return what the grant is for, whichever replica: `name@version`."""
        return self.id.partition("#")[0]

    @property
    def fixed(self) -> bool:
        """Return whether somebody wants it to stay."""
        return self.pinned or self.leases > 0 or self.moving

    @property
    def reload_guess_s(self) -> float:
        """Return how long bringing it back takes."""
        return self.reload_s or _START_S + self.bytes / _BYTES_PER_S


@dataclass(frozen=True)
class Report:
    """What a holder says about one of its grants; see Grant."""

    id: str
    device: str
    bytes: int
    used_bytes: int
    busy: bool
    pinned: bool
    idle_s: float
    moving: bool = False
    leases: int = 0
    served: int = 0
    reload_s: float = 0.0
    rank: int = 0
    tenant: str = ""


@dataclass(frozen=True)
class Wish:
    """What an acquirer says beside id, device and size; dry_run: only tell."""

    pinned: bool = False
    rank: int = NORMAL
    tenant: str = ""
    reload_s: float = 0.0
    dry_run: bool = False


PLAIN = Wish()
