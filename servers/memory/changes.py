"""Owns what came and went lately, for people who ask afterwards. Decides nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from llmos.servers.memory.grants import Grant

_KEPT = 200
_EVICTION_S = 60.0  # who is asked to go and goes within that went because of it


class Kind(IntEnum):
    """As ChangeKind of residency.proto."""

    GRANTED = 1
    FOUND = 2
    RELEASED = 3
    EVICTED = 4
    EXPIRED = 5


@dataclass(frozen=True)
class Change:
    """A grant that came or went. unix_s: when; wanted_by: who wanted the room of an evicted one."""

    unix_s: float
    kind: Kind
    id: str
    device: str
    bytes: int
    tenant: str
    wanted_by: str = ""


class Changes:
    """The last changes, and who was asked to go for whom."""

    def __init__(
        self, clock: Callable[[], float], calendar: Callable[[], float] = time.time
    ) -> None:
        """Start empty. clock: of the ledger; calendar: seconds since 1970."""
        self._clock, self._calendar = clock, calendar
        self._kept: deque[Change] = deque(maxlen=_KEPT)
        self._asked: dict[str, tuple[str, float]] = {}

    def asked(self, ids: list[str], wanted_by: str) -> None:
        """Note that grants were asked to go."""
        now = self._clock()
        self._asked |= {id: (wanted_by, now) for id in ids}

    def came(self, grant: Grant, kind: Kind) -> None:
        """Note a grant that is held now."""
        self._asked.pop(grant.id, None)
        self._note(grant, kind)

    def went(self, grant: Grant, kind: Kind = Kind.RELEASED) -> None:
        """Note a grant that is gone; one that was asked to go is told from one that went."""
        wanted_by, when = self._asked.pop(grant.id, ("", 0.0))
        if kind is Kind.RELEASED and wanted_by and self._clock() - when <= _EVICTION_S:
            self._note(grant, Kind.EVICTED, wanted_by)
        else:
            self._note(grant, kind)

    def newest(self, limit: int = 0) -> list[Change]:
        """Return the last changes, newest first; limit 0 = all that are kept."""
        found = list(reversed(self._kept))
        return found[:limit] if limit else found

    def _note(self, grant: Grant, kind: Kind, wanted_by: str = "") -> None:
        self._kept.append(
            Change(
                self._calendar(), kind, grant.id, grant.device, grant.bytes, grant.tenant, wanted_by
            )
        )
