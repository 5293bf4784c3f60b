"""Time that only goes on: since the host's boot, asleep or awake, whatever the date is set to.

A deadline by this clock holds across restarts of the process. It means nothing after a reboot or
on another host, which its `boot` tells.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class BootClock:
    """The clock of this boot."""

    def __init__(self) -> None:
        """Find out which boot this is; where that cannot be told, every process has its own."""
        try:
            self.boot = _BOOT_ID.read_text().strip()
        except OSError:
            self.boot = uuid.uuid4().hex

    def now(self) -> float:
        """Return seconds since the boot, including those asleep."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
