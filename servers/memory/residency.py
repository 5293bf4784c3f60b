"""Owns the count of device memory granted to models. Decides; loads and unloads nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmos.lib.errors import InvalidArgument, ResourceExhausted
from llmos.servers.memory.devices import Device

log = logging.getLogger(__name__)


@dataclass
class Grant:
    """Room held on a device. Times are on the ledger's clock, sizes in bytes."""

    id: str
    device: str
    bytes: int
    used_bytes: int = 0
    busy: bool = False
    pinned: bool = False
    last_busy: float = 0.0
    reported: float = 0.0


@dataclass(frozen=True)
class Report:
    """What a holder says about one of its grants."""

    id: str
    device: str
    bytes: int
    used_bytes: int
    busy: bool
    pinned: bool
    idle_s: float


class Ledger:
    """Grants by id, on a fixed set of devices."""

    def __init__(
        self,
        devices: Iterable[Device],
        *,
        ttl_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty; holders rebuild the ledger by `report`. ttl_s: life without a report."""
        self.devices = {d.name: d for d in devices}
        self._grants: dict[str, Grant] = {}
        self._ttl_s = ttl_s
        self._clock = clock

    def acquire(self, id: str, device: str, size: int, pinned: bool = False) -> list[str]:
        """Grant `size` bytes under `id` and return [], or return the ids to evict first.

        A held id changes its size or device, or keeps what it has when that is refused. Beside
        the budget, what the device really has free counts: others use it too, and after a restart
        grants may not be reported yet.
        Raises InvalidArgument BAD_GRANT, ResourceExhausted OVER_BUDGET.
        """
        self.expire()
        if not id or size <= 0 or device not in self.devices:
            raise InvalidArgument(
                "BAD_GRANT",
                f"A grant needs an id, bytes over 0 and a device of {', '.join(self.devices)}; got "
                f"id {id!r}, {size:,} bytes, device {device!r}.",
            )
        now = self._clock()
        held = self._grants.get(id)
        mine = held.bytes if held is not None and held.device == device else 0
        others = [g for g in self._grants.values() if g.device == device and g.id != id]
        budget, free = self.devices[device].budget, self.devices[device].free()
        short = max(sum(g.bytes for g in others) + size - budget, size - mine - free)
        if short > 0:
            return self._evict(others, short, size, self.devices[device], free)
        kept = held or Grant(id, device, size, last_busy=now)
        kept.device, kept.bytes, kept.pinned, kept.reported = device, size, pinned, now
        self._grants[id] = kept
        return []

    def _evict(
        self, others: list[Grant], short: int, size: int, device: Device, free: int
    ) -> list[str]:
        """Return the fewest idle grants, least recently used first, that make `short` bytes."""
        idle = sorted((g for g in others if not g.busy and not g.pinned), key=lambda g: g.last_busy)
        chosen: list[Grant] = []
        for grant in idle:
            if sum(g.bytes for g in chosen) >= short:
                break
            chosen.append(grant)
        total = sum(g.bytes for g in chosen)
        if total < short:
            fixed = [g for g in others if g.busy or g.pinned]
            raise ResourceExhausted(
                "OVER_BUDGET",
                f"{size:,} bytes do not fit on {device.name}: its budget is {device.budget:,}, "
                f"{sum(g.bytes for g in fixed):,} are held by busy or pinned grants "
                f"({', '.join(g.id for g in fixed) or 'none'}) and {free:,} are free; wait, unpin "
                "one or ask for less.",
                retry_after_s=1.0 if any(g.busy for g in fixed) else None,
            )
        for grant in reversed(chosen[:-1]):  # a large one late in the list may make these needless
            if total - grant.bytes >= short:
                chosen.remove(grant)
                total -= grant.bytes
        return [g.id for g in chosen]

    def release(self, id: str) -> None:
        """Give room back; an unknown id is fine."""
        self._grants.pop(id, None)

    def report(self, reports: Iterable[Report]) -> None:
        """Note that grants are held; unknown ones are recorded, even over the budget."""
        now = self._clock()
        for report in reports:
            if not report.id or report.bytes <= 0 or report.device not in self.devices:
                log.warning("ignored a report", extra={"grant": report.id, "on": report.device})
                continue
            grant = self._grants.setdefault(
                report.id, Grant(report.id, report.device, report.bytes)
            )
            grant.used_bytes, grant.busy = report.used_bytes, report.busy
            grant.pinned, grant.reported = report.pinned, now
            grant.last_busy = now if report.busy else now - max(0.0, report.idle_s)

    def expire(self) -> None:
        """Drop the grants that nobody reported in time."""
        limit = self._clock() - self._ttl_s
        for id in [g.id for g in self._grants.values() if g.reported <= limit]:
            log.warning("dropped a grant that nobody reports", extra={"grant": id})
            del self._grants[id]

    def grants(self) -> list[Grant]:
        """Return all grants, by device and id."""
        self.expire()
        return sorted(self._grants.values(), key=lambda g: (g.device, g.id))

    def granted(self, device: str) -> int:
        """Return the bytes granted on a device."""
        return sum(g.bytes for g in self.grants() if g.device == device)

    def idle_s(self, grant: Grant) -> float:
        """Return seconds since a grant was last busy."""
        return 0.0 if grant.busy else max(0.0, self._clock() - grant.last_busy)
