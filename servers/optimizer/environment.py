"""What job processes find in their environment."""

from __future__ import annotations

import os

_SPIN = "GOMP_SPINCOUNT"
_TURNS = "1000"  # tens of microseconds


def environment() -> dict[str, str]:
    """Return this process's environment, with threads that wait for one another asleep.

    OpenMP's wait in a loop of some milliseconds by default. On idle cores that gains nothing over a
    thousand turns; where others compute, too, the loop takes from them the time that the awaited
    thread needs: there a step took six times as long. Who set it, or OMP_WAIT_POLICY, is heeded.
    """
    found = dict(os.environ)
    if "OMP_WAIT_POLICY" not in found:
        found.setdefault(_SPIN, _TURNS)
    return found
