"""Getting one file over a connection that may break: goes on where it stopped, then checks."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from llmos.lib.errors import Unavailable
from llmos.servers.storage.disk import CHUNK, require_room, writing
from llmos.servers.storage.places.base import Meter, mismatch

_TRIES = 4  # in a row without a byte of progress
_PAUSE_S = 0.2

# Yields the file from an offset on; raises SOURCE_UNREACHABLE when the connection breaks.
Ranged = Callable[[int], Generator[bytes, None, None]]


def fetch(
    path: Path, size: int, tag: str, ranged: Ranged, meter: Meter, *, source: str, sha256: str = ""
) -> None:
    """Bring a file of `size` bytes to `path`.

    tag: what tells this content from a later one of the same name (its digest or ETag): a part
    that is there already is only gone on with when it is of the same. sha256: to check, if known.
    Raises SOURCE_UNREACHABLE after some tries, DIGEST_MISMATCH, DISK_FULL.
    """
    if path.exists():  # by an earlier try: it was checked then
        meter.add(size)
        return
    part = path.with_name(f"{path.name}.{hashlib.sha256(tag.encode()).hexdigest()[:12]}.part")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        digest = hashlib.sha256()
        with part.open("a+b", buffering=0) as file:
            done = _kept(file.fileno(), size, digest)
            meter.add(done)
            require_room(path.parent, size - done)
            tries = 0
            while done < size:
                before = done
                try:
                    with closing(ranged(done)) as pieces:
                        for data in pieces:
                            done += len(data)
                            if done > size:
                                break
                            file.write(data)
                            digest.update(data)
                            meter.add(len(data))
                except Unavailable:
                    tries = 0 if done > before else tries + 1
                    if tries >= _TRIES:
                        raise
                    time.sleep(_PAUSE_S * (1 << tries))
                    meter.add(0)
                    continue
                if done != size:
                    break
        if done != size:
            part.unlink()
            raise mismatch(source, path.name, f"is not of the {size:,} bytes announced")
        if sha256 and digest.hexdigest() != sha256:
            part.unlink()
            raise mismatch(source, path.name, f"has the sha256 {digest.hexdigest()}, not {sha256}")
        part.rename(path)


def _kept(fd: int, size: int, digest: hashlib._Hash) -> int:
    """Return how many bytes are there already, after hashing them."""
    kept = os.fstat(fd).st_size
    if kept > size:
        os.ftruncate(fd, 0)
        return 0
    os.lseek(fd, 0, os.SEEK_SET)
    while data := os.read(fd, CHUNK):
        digest.update(data)
    return kept
