"""How far the thread that runs a model has got."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Work:
    """Counts runs and the CPU time of the thread that runs."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._runs = 0
        self._thread = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a run of this thread."""
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._runs += 1

    def done(self) -> float:
        """Return the runs so far and the CPU seconds, to the hundredth, of the thread that runs.

        A run shows nothing of how far it is, but one that waits for what never comes uses no CPU.
        Not to be asked after that thread has ended.
        """
        if not self._thread:
            return 0.0
        clock = time.pthread_getcpuclockid(self._thread)
        return self._runs + round(time.clock_gettime(clock), 2)
