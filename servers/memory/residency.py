"""Owns the count of device memory granted to models. Decides; loads and unloads nothing."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable

from llmos.lib.errors import InvalidArgument, ResourceExhausted
from llmos.servers.memory.changes import Changes, Kind
from llmos.servers.memory.devices import Device
from llmos.servers.memory.grants import NORMAL, PLAIN, Grant, Report, Wish
from llmos.servers.memory.line import Line, Place
from llmos.servers.memory.policy import GreedyDual

__all__ = ["Grant", "Ledger", "Report", "Wish"]
_RETRY_S = 0.1

log = logging.getLogger(__name__)


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
        self._policy = GreedyDual()
        self._line = Line(clock)
        self.changes = Changes(clock)

    def acquire(self, id: str, device: str, size: int, wish: Wish = PLAIN) -> list[str]:
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
        held = self._grants.get(id)
        mine = held.bytes if held is not None and held.device == device else 0
        budget, free = self.devices[device].budget, self.devices[device].free()
        others = sum(g.held_bytes for g in self._on(device, id))
        ahead = [] if held is not None else self._line.ahead(id, device, wish.rank or NORMAL)
        short = max(others + size - budget, size - mine - free)
        if ahead and short + sum(p.size for p in ahead) > 0:
            self._wait(id, device, size, wish, self._behind(size, device, ahead))
        if short > 0:
            evict = self._evict(id, short, size, self.devices[device], free, wish)
            if not wish.dry_run:
                self.changes.asked(evict, id)
            return evict
        if not wish.dry_run:
            self._hold(id, device, size, wish)
        return []

    def _hold(self, id: str, device: str, size: int, wish: Wish) -> None:
        now = self._clock()
        # Until its holder reports it, it is being loaded.
        known = self._grants.get(id)
        grant = known or Grant(id, device, size, moving=True, last_busy=now)
        self._grants[id] = grant
        grant.device, grant.bytes, grant.pinned, grant.reported = device, size, wish.pinned, now
        grant.rank, grant.tenant = wish.rank or NORMAL, wish.tenant or grant.tenant
        grant.reload_s = wish.reload_s or grant.reload_s
        self._line.leave(id)
        if known is None:
            self.changes.came(grant, Kind.GRANTED)

    def _evict(
        self, id: str, short: int, size: int, device: Device, free: int, wish: Wish
    ) -> list[str]:
        """Return the fewest grants, least worth first, that make `short` bytes."""
        others = self._on(device.name, id)
        soft = [g for g in others if not g.fixed]
        names = [g.id for g in soft if not g.busy]
        chosen = self._enough(names, short)
        if chosen is None:
            sentence = self._over_budget(size, device, others, free)
            if sum(g.held_bytes for g in others if not g.pinned and not g.leases) < short:
                raise ResourceExhausted("OVER_BUDGET", sentence)  # waiting would not help
            if wish.dry_run:
                chosen = self._enough([g.id for g in soft], short)
                return chosen if chosen is not None else []
            place = self._line.join(id, device.name, size, wish.rank or NORMAL)
            pressed = [g.id for g in soft if g.busy and self._line.presses(place, g.rank)]
            chosen = self._enough([*names, *pressed], short)
            if chosen is None:
                raise ResourceExhausted("OVER_BUDGET", sentence, retry_after_s=_RETRY_S)
        return chosen

    def _enough(self, ids: list[str], short: int) -> list[str] | None:
        """Return the least worthy of `ids` that make `short` bytes together; None: all do not."""
        sizes = {id: self._grants[id].held_bytes for id in ids}
        chosen: list[str] = []
        total = 0
        for id in self._ordered(ids):
            if total >= short:
                break
            chosen.append(id)
            total += sizes[id]
        if total < short:
            return None
        for id in reversed(chosen[:-1]):  # a large one late in the list may make these needless
            if total - sizes[id] >= short:
                chosen.remove(id)
                total -= sizes[id]
        return chosen

    def _ordered(self, ids: list[str]) -> list[str]:
        """Return grants, first to go first: by the policy, equal ones by idleness."""
        idle_first = sorted(ids, key=lambda id: self._grants[id].last_busy)
        places = {m: n for n, m in enumerate(self._policy.order([self._model(i) for i in ids]))}
        return sorted(idle_first, key=lambda id: places[self._model(id)])

    def _model(self, id: str) -> str:
        return self._grants[id].model

    def _wait(self, id: str, device: str, size: int, wish: Wish, sentence: str) -> None:
        if not wish.dry_run:
            self._line.join(id, device, size, wish.rank or NORMAL)
        raise ResourceExhausted("OVER_BUDGET", sentence, retry_after_s=_RETRY_S)

    def _behind(self, size: int, device: str, ahead: list[Place]) -> str:
        return (
            f"{size:,} bytes on {device} have to wait for {len(ahead)} before them in line "
            f"(first {ahead[0].id}, {ahead[0].size:,} bytes); wait, or unload something."
        )

    def _over_budget(self, size: int, device: Device, others: list[Grant], free: int) -> str:
        kept = [g for g in others if g.busy or g.fixed]
        return (
            f"{size:,} bytes do not fit on {device.name}: its budget is {device.budget:,}, "
            f"{sum(g.held_bytes for g in kept):,} are held by busy or pinned grants "
            f"({', '.join(map(_why, kept)) or 'none'}) and {free:,} are free; wait, unpin "
            "one or ask for less."
        )

    def _on(self, device: str, but: str = "") -> list[Grant]:
        return [g for g in self._grants.values() if g.device == device and g.id != but]

    def release(self, id: str) -> None:
        """Give room back; an unknown id is fine."""
        if (grant := self._grants.pop(id, None)) is not None:
            self.changes.went(grant)
        self._line.leave(id)

    def report(self, reports: Iterable[Report]) -> None:
        """Note that grants are held; unknown ones are recorded, even over the budget."""
        now = self._clock()
        for report in reports:
            if not report.id or report.bytes <= 0 or report.device not in self.devices:
                log.warning("ignored a report", extra={"grant": report.id, "on": report.device})
                continue
            known = self._grants.get(report.id)
            uses = report.served - known.served if known is not None else 0
            grant = known or Grant(report.id, report.device, report.bytes)
            self._grants[report.id] = grant
            grant.used_bytes, grant.busy = report.used_bytes, report.busy or report.moving
            grant.moving, grant.leases = report.moving, report.leases
            grant.pinned, grant.reported = report.pinned, now
            grant.rank, grant.tenant = report.rank or grant.rank, report.tenant or grant.tenant
            grant.reload_s = report.reload_s or grant.reload_s
            grant.last_busy = now if grant.busy else now - max(0.0, report.idle_s)
            grant.served = report.served
            if known is None:
                self.changes.came(grant, Kind.FOUND)
            if uses > 0:
                self._use(grant, uses, now)
            elif self._policy.value(grant.model) == -math.inf:  # what it served is not known here
                self._use(grant, 1, grant.last_busy)

    def _use(self, grant: Grant, times: int, now: float) -> None:
        self._policy.used(
            grant.model,
            now,
            size=grant.bytes,
            reload_s=grant.reload_guess_s,
            rank=grant.rank,
            times=times,
        )

    def expire(self) -> None:
        """Drop the grants that nobody reported in time."""
        limit = self._clock() - self._ttl_s
        for id in [g.id for g in self._grants.values() if g.reported <= limit]:
            log.warning("dropped a grant that nobody reports", extra={"grant": id})
            self.changes.went(self._grants.pop(id), Kind.EXPIRED)

    def grants(self) -> list[Grant]:
        """Return all grants, by device and id."""
        self.expire()
        return sorted(self._grants.values(), key=lambda g: (g.device, g.id))

    def order(self, device: str) -> dict[str, int]:
        """Return the place of each grant in the order of eviction, 1 goes first; not fixed ones."""
        ids = [g.id for g in self._on(device) if not g.fixed]
        idle = self._ordered([id for id in ids if not self._grants[id].busy])
        busy = self._ordered([id for id in ids if self._grants[id].busy])
        return {id: n for n, id in enumerate([*idle, *busy], 1)}

    def granted(self, device: str) -> int:
        """Return the bytes granted on a device."""
        return sum(g.bytes for g in self.grants() if g.device == device)

    def used(self, device: str) -> int:
        """Return the bytes that holders were last measured to use on a device."""
        return sum(g.used_bytes for g in self.grants() if g.device == device)

    def waiting(self, device: str) -> int:
        """Return the bytes that wait in line for a device."""
        return sum(p.size for p in self._line.waiting(device))

    def idle_s(self, grant: Grant) -> float:
        """Return seconds since a grant was last busy."""
        return 0.0 if grant.busy else max(0.0, self._clock() - grant.last_busy)


def _why(grant: Grant) -> str:
    reasons = [
        *(["pinned"] if grant.pinned else []),
        *([f"{grant.leases} leases"] if grant.leases else []),
        *(["busy"] if grant.busy else []),
    ]
    return f"{grant.id}: {' and '.join(reasons)}"
