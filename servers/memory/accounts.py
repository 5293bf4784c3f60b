"""Counts the bytes of buffers, all together and of each tenant, against what they may have."""

from __future__ import annotations

from collections import Counter

from llmos.lib.errors import InvalidArgument, ResourceExhausted
from llmos.servers.memory.record import Record
from llmos.servers.memory.shm import charge


class Accounts:
    """What buffers use, with what is being allocated. Sizes are bytes."""

    def __init__(self, budget: int, max_size: int, quota: int) -> None:
        """Start with nothing used. max_size of a buffer, quota of a tenant: 0 = the budget."""
        self.budget = budget
        self.max_size = min(max_size or budget, budget)
        self.quota = min(quota or budget, budget)
        self.used = 0
        self._used_by: Counter[str] = Counter()  # the same, by tenant

    def charge(self, record: Record, sign: int = 1) -> None:
        """Count a buffer, or (-1) no longer."""
        size = sign * charge(record.size)
        self.used += size
        self._used_by[record.tenant] += size
        if not self._used_by[record.tenant]:
            del self._used_by[record.tenant]

    def over(self, size: int) -> int:
        """Return by how much one more buffer would exceed the budget; at most 0 if not."""
        return self.used + charge(size) - self.budget

    def over_quota(self, size: int, tenant: str) -> int:
        """Return the same for the quota of a tenant."""
        return self._used_by[tenant] + charge(size) - self.quota

    def check_size(self, size: int) -> None:
        """Raise InvalidArgument BAD_SIZE for a size that no buffer may have."""
        if not 0 < size <= self.max_size:
            raise InvalidArgument(
                "BAD_SIZE",
                f"A buffer must have 1 to {self.max_size:,} bytes, not {size:,}; the limit is "
                "max_buffer_bytes of the memory server.",
            )

    def check(self, size: int, tenant: str) -> None:
        """Raise ResourceExhausted NO_ROOM or QUOTA where one more buffer would be too much."""
        if self.over(size) > 0:
            raise ResourceExhausted(
                "NO_ROOM",
                f"No room for {size:,} bytes: buffers use {self.used:,} of their budget of "
                f"{self.budget:,}; free some or raise buffer_bytes of the memory server.",
            )
        if self.over_quota(size, tenant) > 0:
            raise ResourceExhausted(
                "QUOTA",
                f"No room for {size:,} bytes: buffers of tenant {tenant!r} use "
                f"{self._used_by[tenant]:,} of the {self.quota:,} bytes that a tenant may have; "
                "free some or raise tenant_buffer_bytes of the memory server.",
            )
