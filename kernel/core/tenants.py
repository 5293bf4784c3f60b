"""What each tenant may use and has used. Limits can be changed at any time."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmos.lib.errors import ResourceExhausted

_BURST_S = 1.0  # a bucket holds what flows in in this time


@dataclass
class TenantLimits:
    """0 = unlimited; weight is the share relative to other tenants."""

    weight: float = 1.0
    max_calls: int = 0  # queued and running
    calls_per_s: float = 0.0
    cost_per_s: float = 0.0


@dataclass(slots=True)
class _Bucket:
    """A token bucket that may go into debt: cost is known only afterwards."""

    level: float = 0.0  # used, leaks away at the rate
    when: float = 0.0

    def wait_s(self, rate: float, now: float) -> float:
        """Return in how many seconds one more may come; 0 = now."""
        self.level = max(0.0, self.level - (now - self.when) * rate)
        self.when = now
        return max(0.0, (self.level - rate * _BURST_S) / rate)


@dataclass(slots=True, eq=False)
class Tenant:
    """One tenant's limits and use."""

    name: str
    limits: TenantLimits = field(default_factory=TenantLimits)
    open: int = 0  # calls queued or running, nested ones not counted
    ended: int = 0
    cost: float = 0.0  # sum over all ended calls, nested ones included
    calls: _Bucket = field(default_factory=_Bucket)
    spent: _Bucket = field(default_factory=_Bucket)

    def admit(self, now: float) -> None:
        """Count a new call. Raises ResourceExhausted QUOTA_CALLS, QUOTA_RATE, QUOTA_COST."""
        limits = self.limits
        if limits.max_calls and self.open >= limits.max_calls:
            raise ResourceExhausted(
                "QUOTA_CALLS",
                f"Tenant {self.name} has {self.open} calls in progress, its limit; wait for some.",
                retry_after_s=0.5,
            )
        if limits.calls_per_s:
            self._check(self.calls, limits.calls_per_s, "QUOTA_RATE", "calls", now)
        if limits.cost_per_s:
            self._check(self.spent, limits.cost_per_s, "QUOTA_COST", "cost", now)
        self.open += 1
        self.calls.level += 1

    def _check(self, bucket: _Bucket, rate: float, reason: str, what: str, now: float) -> None:
        if wait := bucket.wait_s(rate, now):
            raise ResourceExhausted(
                reason,
                f"Tenant {self.name} is over its {rate:g} {what}/s; try again in {wait:.2f} s.",
                retry_after_s=wait,
            )

    def bill(self, cost: float) -> None:
        """Take the cost of an ended call."""
        self.ended += 1
        self.cost += cost
        self.spent.level += cost
