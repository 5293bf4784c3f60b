"""Reading everything now and then, so that damage is found while there are other copies."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path

from sqlalchemy import func, select

from llmos.servers.storage.blobs import rows
from llmos.servers.storage.blobs.store import Blobs
from llmos.servers.storage.db.tables_blobs import blobs as table
from llmos.servers.storage.upkeep import verify
from llmos.servers.storage.upkeep.base import Finding


class Pace:
    """Keeps work to so many bytes a second; 0 = no limit."""

    def __init__(self, bytes_per_s: int) -> None:
        """Start now."""
        self._rate = bytes_per_s
        self._ready = time.monotonic()

    def spend(self, count: int) -> float:
        """Return how many seconds to wait after `count` bytes were done."""
        if not self._rate:
            return 0.0
        now = time.monotonic()
        self._ready = max(self._ready, now - 1) + count / self._rate  # a second may be saved up
        return max(0.0, self._ready - now)


def due(blobs: Blobs, checked_before: float, limit: int = 0) -> list[rows.Row]:
    """Return sound blobs that were not checked since, those checked longest ago first."""
    old = select(table.c.sha256).where(table.c.checked < checked_before, table.c.fault == "")
    old = old.order_by(table.c.checked, table.c.sha256)
    if limit:
        old = old.limit(limit)
    with blobs.db.read() as sql:
        found = (rows.get(sql, digest) for digest in list(sql.execute(old).scalars()))
        return [row for row in found if row is not None]


def since(blobs: Blobs) -> float:
    """Return the Unix time since which every sound blob was checked; 0 = not all were."""
    with blobs.db.read() as sql:
        return float(sql.execute(select(func.min(table.c.checked))).scalar() or 0)


def one(blobs: Blobs, aside: Path, row: rows.Row) -> Generator[int, None, Finding | None]:
    """Check one blob, yielding bytes done; put it into quarantine when it is damaged."""
    with blobs.db.read() as sql:
        current = rows.get(sql, row.sha256)
    if current is None or current.fault:
        return None
    finding = yield from verify.check(blobs, current, quick=False)
    with blobs.db.read() as sql:
        if rows.get(sql, row.sha256) is None:  # deleted meanwhile
            return None
    if finding is None:
        verify.sound(blobs, current, time.time())
    else:
        verify.quarantine(blobs, aside, current, finding.what)
    return finding
