"""Folders for what is on its way in: kept while a transfer may go on, removed otherwise."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from llmos.lib.errors import Cancelled, Unavailable
from llmos.servers.storage.disk import writing
from llmos.servers.storage.places.base import Meter

_LOCK = ".lock"
_WAIT_S = 0.1


class Incoming:
    """Owns `<storage>/incoming`: one folder per source, by the hash of its name."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made when it is first needed."""
        self._folder = folder

    @contextlib.contextmanager
    def taken(self, source: str, meter: Meter) -> Iterator[Path]:
        """Hold the folder of a source; a second import of the same one waits.

        It stays for `collect` when the transfer was cancelled or lost its place, so that the next
        try goes on from there, and goes in every other case. After a kill it stays, too.
        """
        path = self._folder / hashlib.sha256(source.encode()).hexdigest()[:32]
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self._hold(path, meter))
            keep = True
            try:
                yield path
                keep = False
            except (Cancelled, Unavailable):
                raise
            except BaseException:
                keep = False
                raise
            finally:
                if keep:
                    os.utime(path)
                else:
                    shutil.rmtree(path, ignore_errors=True)

    def _hold(self, path: Path, meter: Meter) -> int:
        """Return the locked file of the folder, which exists then."""
        while True:
            with writing(path):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
                lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_nlink:  # else it was removed while we waited for it
                    return lock
            except BlockingIOError:
                meter.say("waiting for the same import")
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
            time.sleep(_WAIT_S)
            meter.add(0)

    def collect(self, older_s: float) -> None:
        """Remove what nobody has gone on with for so long."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if time.time() - path.stat().st_mtime < older_s:
                continue
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(lock)
