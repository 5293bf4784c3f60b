"""The life of one managed process as a pure state machine: no clocks, no I/O.

    WAITING -> STARTING -> RUNNING -> BACKOFF -> STARTING ...      any -> STOPPING -> STOPPED

Its driver (`unit.py`) says what happened and when; it answers what to do.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

CHECKS_PER_HANG = 3


class State(enum.IntEnum):
    """As ProcessState of init.proto, with its numbers."""

    WAITING = 1
    STARTING = 2
    RUNNING = 3
    BACKOFF = 4
    STOPPING = 5
    STOPPED = 6


@dataclass(frozen=True)
class Policy:
    """When a process is restarted and when it is given up; times in seconds."""

    base_s: float = 0.1
    cap_s: float = 10.0
    healthy_s: float = 30.0
    hang_s: float = 15.0
    attempts: int = 3

    @property
    def check_s(self) -> float:
        """Return the pause between two health checks, which is also how long one may take."""
        return self.hang_s / CHECKS_PER_HANG


class Life:
    """State, restart count and back-off of one process."""

    def __init__(self, policy: Policy, *, restarts: int = 0, last_exit: str = "") -> None:
        """Begin in WAITING; counters go on from an earlier init when it gives them."""
        self.policy = policy
        self.state = State.WAITING
        self.restarts = restarts
        self.last_exit = last_exit
        self.ever_ready = False
        self._deaths = 0  # in a row, without a healthy time between
        self._ready_at = 0.0
        self._misses = 0

    def started(self) -> None:
        """A process exists now."""
        self.state = State.STARTING
        self._misses = 0

    def ready(self, now: float) -> None:
        """Its health service says SERVING for the first time."""
        self.state = State.RUNNING
        self.ever_ready = True
        self._ready_at = now

    def answered(self) -> None:
        """Its health was asked and answered."""
        self._misses = 0

    def missed(self) -> bool:
        """Its health was asked in vain; return whether it must be taken for hung."""
        self._misses += 1
        return self._misses >= CHECKS_PER_HANG

    def died(self, now: float, how: str, *, hopeless: bool = False) -> float | None:
        """It ended by itself; return the pause before it is started again, None = give it up.

        Given up is only what was never ready: it died `attempts` times, or its end says that
        another try is hopeless.
        """
        self.last_exit = how
        if self.state is State.RUNNING and now - self._ready_at >= self.policy.healthy_s:
            self._deaths = 0
        self._deaths += 1
        if not self.ever_ready and (hopeless or self._deaths >= self.policy.attempts):
            self.state = State.STOPPED
            return None
        self.state = State.BACKOFF
        self.restarts += 1
        if self._deaths == 1:
            return 0.0
        return float(min(self.policy.cap_s, self.policy.base_s * 2.0 ** min(self._deaths - 2, 62)))

    def stopping(self) -> None:
        """It was asked to end."""
        self.state = State.STOPPING

    def stopped(self, how: str) -> None:
        """It ended because it was asked to."""
        self.state = State.STOPPED
        self.last_exit = how or self.last_exit

    def again(self) -> None:
        """It was stopped and is to be started again on request."""
        self.state = State.WAITING
        self.restarts += 1
        self._deaths = 0
