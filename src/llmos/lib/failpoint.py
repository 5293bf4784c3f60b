"""Named places in code at which a test can make this process die, as by a power cut, or wait.

    failpoint.hit("blob.renamed")

does nothing, unless the process was started with LLMOS_FAILPOINT=blob.renamed (or `blob.renamed*3`
for the third time it is passed): then it kills itself with SIGKILL. No handler runs and nothing is
flushed. With LLMOS_FAILPOINT=`*37` it dies at the 37th place that it passes, whatever its name.

LLMOS_FAILPOINT=/a/folder is for processes that start others and for many deaths, one after the
other: a file there called as a place holds a count, and the first process that passes the place so
often takes the file (it is then called NAME.taken) and dies. If the file says `3 wait` it does not
die, but waits there until NAME.taken is removed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

VARIABLE = "LLMOS_FAILPOINT"
_LOOK_S = 0.005


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


class _Folder:
    """Places that are armed by files, each for one death. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def hit(self, name: str) -> None:
        with self._lock:
            self._passed[name] += 1
            passed = self._passed[name]
        file = self._path / name.replace("/", "_")
        taken = file.with_name(file.name + ".taken")
        try:
            count, *rest = file.read_text().split()
            if passed < int(count):
                return
            file.rename(taken)  # one process only
        except FileNotFoundError:
            return
        if rest != ["wait"]:
            os.kill(os.getpid(), signal.SIGKILL)
        while taken.exists():
            time.sleep(_LOOK_S)


def _read() -> _Armed | _Folder | None:
    spec = os.environ.get(VARIABLE, "")
    if spec.startswith("/"):
        return _Folder(Path(spec))
    return _Armed(spec) if spec else None


_armed = _read()


def hit(name: str) -> None:
    """Die or wait here if the environment said so; else do nothing."""
    if _armed is not None:
        _armed.hit(name)
