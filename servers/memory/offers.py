"""Buffers made of memory that their client has freed, until the client takes them.

Allocating, clearing, mapping and giving back 4 MiB of shared memory takes ten times as long as
clearing it again. So who frees what nobody else can see may get the memory again, under a new id
and token: the old handle is as dead as that of any freed buffer. The marker `<id>.spare` lies
beside it until the client removes that and goes on without asking; as long as it is there the
server may remove it instead, and then the buffer, too. One `unlink` wins, also over a restart.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmos.servers.memory.record import Buffer
from llmos.servers.memory.shm import Directory, charge

KEEP_S = 2.0
LARGEST = 8 << 20  # bytes
_SHARE = 8  # offers have no more than this part of the budget


class Offers:
    """The buffers of one directory that were offered and, as far as is known, not taken."""

    def __init__(self, directory: Directory) -> None:
        """Start without any."""
        self._dir = directory
        self._offered: dict[str, tuple[Buffer, float]] = {}  # by id, with the time; oldest first

    def fits(self, buffer: Buffer, lessee: str, budget: int) -> bool:
        """Return whether nobody but `lessee` can see the buffer, and keeping it is cheap."""
        record = buffer.record
        return (
            record.creator == lessee
            and not (record.strangers or record.sealed or buffer.readers)
            and buffer.deadlines.keys() == {lessee}
            and record.size <= LARGEST
            and self._bytes() + charge(record.size) <= budget // _SHARE
            and self._dir.whole(record)
        )

    def add(self, buffer: Buffer, now: float) -> None:
        """Note what was offered."""
        self._offered[buffer.record.id] = (buffer, now)

    def forget(self, id: str) -> None:
        """Note that it is nobody's any more."""
        if self._offered.pop(id, None):
            self._dir.take_back(id)

    def waiting(self) -> set[str]:
        """Return the ids of those that were not taken yet."""
        for id in [id for id in self._offered if not self._dir.offered(id)]:
            del self._offered[id]
        return {*self._offered}

    def take_back(self, before: float) -> Iterator[Buffer]:
        """Yield those offered before `before` that were not taken, and cannot be from now on."""
        due = [id for id, (_, at) in self._offered.items() if at <= before]
        for id in due:
            buffer, _ = self._offered.pop(id)
            if self._dir.take_back(id):
                yield buffer

    def _bytes(self) -> int:
        return sum(charge(buffer.record.size) for buffer, _ in self._offered.values())
