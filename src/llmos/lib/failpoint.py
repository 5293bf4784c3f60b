"""Named places in code at which a test can make this process die, as by a power cut.

    failpoint.hit("blob.renamed")

does nothing, unless the process was started with LLMOS_FAILPOINT=blob.renamed (or `blob.renamed*3`
for the third time it is passed): then it kills itself with SIGKILL. No handler runs and nothing is
flushed. With LLMOS_FAILPOINT=`*37` it dies at the 37th place that it passes, whatever its name.
"""

from __future__ import annotations

import os
import signal
import threading

VARIABLE = "LLMOS_FAILPOINT"


class _Armed:
    """Counts passes and kills at the right one. Thread-safe."""

    def __init__(self, spec: str) -> None:
        self._name, _, count = spec.partition("*")
        self._left = int(count or 1)
        self._lock = threading.Lock()

    def hit(self, name: str) -> None:
        if self._name not in ("", name):
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


_armed = _Armed(spec) if (spec := os.environ.get(VARIABLE)) else None


def hit(name: str) -> None:
    """Die here if the environment said so; else do nothing."""
    if _armed is not None:
        _armed.hit(name)
