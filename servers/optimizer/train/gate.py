"""What a training asks between two steps: go on, wait for inference, or stop."""

from __future__ import annotations

import threading
import time
from pathlib import Path

_LOOK_S = 0.01
MAX_WAIT_S = 5.0  # then one step is made, so that a busy machine stops no job for ever


class Gate:
    """Closed while a file is there (`Watcher` makes it), for all processes of a job."""

    def __init__(self, work: Path, stop: threading.Event) -> None:
        """stop: set to make the training stop after its present step."""
        self._file = work / BUSY
        self._stop = stop
        self.waited_s = 0.0

    @property
    def stopping(self) -> bool:
        """Say whether to stop now."""
        return self._stop.is_set()

    def wait(self) -> None:
        """Return when no inference runs, or after MAX_WAIT_S."""
        if not self._file.exists():
            return
        start = time.monotonic()
        while time.monotonic() - start < MAX_WAIT_S and self._file.exists():
            if self._stop.wait(_LOOK_S):
                break
        self.waited_s += time.monotonic() - start


BUSY = "busy"
