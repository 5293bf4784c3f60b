"""The second tier: a file for each run. All methods block; a torn file is told by its checksum."""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path

_PIECE = 4 << 20


class Disk:
    """Owns a directory of files `<id>.kv` and of `<id>.tmp` that are half written."""

    def __init__(self, path: Path, spare: int = 0) -> None:
        """Make the directory; leave `spare` bytes free for others. Raises OSError."""
        self._path = path
        self._spare = spare
        path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def sweep(self, known: set[int]) -> None:
        """Remove all files but those of the runs `known`."""
        for file in self._path.iterdir():
            if file.suffix != ".kv" or not file.stem.isdecimal() or int(file.stem) not in known:
                file.unlink()

    def has(self, id: int, size: int) -> bool:
        """Say whether the file of a run is there in full size."""
        try:
            return self._file(id).stat().st_size == size
        except OSError:
            return False

    def room(self) -> int:
        """Return the bytes that may be written before the file system gets short of space."""
        info = os.statvfs(self._path)
        return info.f_bavail * info.f_frsize - self._spare

    def write(self, id: int, source: str) -> int:
        """Copy a run's buffer to its file; return the CRC-32. Raises OSError, leaving nothing."""
        temporary = self._file(id).with_suffix(".tmp")
        checksum = 0
        try:
            with open(source, "rb", buffering=0) as file, temporary.open("xb", buffering=0) as copy:
                os.fchmod(copy.fileno(), 0o600)
                while data := file.read(_PIECE):
                    checksum = zlib.crc32(data, checksum)
                    if copy.write(data) != len(data):
                        raise OSError("The disk took only a part.")
            temporary.replace(self._file(id))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return checksum

    def read(self, id: int, target: str, checksum: int) -> bool:
        """Copy a run's file into a buffer of its size; False when it is damaged or gone."""
        found = 0
        try:
            with self._file(id).open("rb", buffering=0) as file, open(target, "r+b") as buffer:
                size = os.fstat(buffer.fileno()).st_size
                if os.fstat(file.fileno()).st_size != size:
                    return False
                with mmap.mmap(buffer.fileno(), size) as memory, memoryview(memory) as view:
                    at = 0
                    while at < size:
                        part = view[at : at + _PIECE]
                        with part:
                            count = file.readinto(part)
                            found = zlib.crc32(part[:count], found)
                        if not count:
                            return False
                        at += count
        except OSError:
            return False
        return found == checksum

    def remove(self, id: int) -> None:
        """Remove a run's file, if there is one."""
        self._file(id).unlink(missing_ok=True)

    def _file(self, id: int) -> Path:
        return self._path / f"{id}.kv"
