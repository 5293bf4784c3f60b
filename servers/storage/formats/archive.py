"""Torch archives (zip files), looked at with bounds: they may be made to lie and to explode."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmos.servers.storage.formats.kinds import bad_file
from llmos.servers.storage.formats.zips import MAX_DIRECTORY, directory_size
from llmos.servers.storage.names import short

_MAX_ENTRIES = 200_000
_MAX_INFLATED = 256 << 20  # bytes of all compressed entries; weights are stored as they are


class Archive:
    """A sound zip file. Made by `opened`."""

    def __init__(self, name: str, archive: zipfile.ZipFile, root: str) -> None:
        """Use an open file; entries are looked up below `root`."""
        self.name = name
        self._zip = archive
        self._root = root
        self.sizes = {
            info.filename.removeprefix(f"{root}/"): info.file_size for info in archive.infolist()
        }

    def read(self, entry: str, limit: int) -> bytes:
        """Return an entry. Raises BAD_MODEL_FILE: missing, over `limit` bytes, or damaged."""
        if entry not in self.sizes:
            raise bad_file(self.name, f"{short(entry)[1:-1]} is missing; export it again")
        if self.sizes[entry] > limit:
            raise bad_file(
                self.name,
                f"{short(entry)[1:-1]} has {self.sizes[entry]:,} bytes, over {limit:,}; export it "
                "again",
            )
        path = f"{self._root}/{entry}" if self._root else entry
        try:
            with self._zip.open(path) as file:
                return file.read(limit + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError) as exc:
            raise bad_file(
                self.name, f"{short(entry)[1:-1]} is damaged; download it again"
            ) from exc


@contextmanager
def opened(name: str, path: Path) -> Iterator[Archive]:
    """Open a torch archive: one root folder, entries apart from each other and inside the file.

    Raises BAD_MODEL_FILE: damaged, entries outside, overlapping, twice, encrypted, or such that
    unpack to far more than they are.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if not 0 <= directory_size(file) <= MAX_DIRECTORY:
            raise bad_file(name, "a zip file that is truncated or damaged; download it again")
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error) as exc:
            raise bad_file(
                name, f"a damaged zip file ({str(exc)[:80]}); download it again"
            ) from exc
        with archive:
            _check(name, archive.infolist(), size)
            roots = {i.filename.split("/", 1)[0] for i in archive.infolist() if "/" in i.filename}
            flat = any("/" not in info.filename for info in archive.infolist())
            yield Archive(name, archive, roots.pop() if len(roots) == 1 and not flat else "")


def _check(name: str, entries: list[zipfile.ZipInfo], size: int) -> None:
    seen: set[str] = set()
    inflated = 0
    if len(entries) > _MAX_ENTRIES:
        raise bad_file(name, f"{len(entries):,} entries, over {_MAX_ENTRIES:,}")
    for info in entries:
        shown = short(info.orig_filename)
        parts = info.orig_filename.rstrip("/").split("/")
        if any(p in ("", ".", "..") for p in parts) or {"\\", "\0"} & set(info.orig_filename):
            raise bad_file(name, f"its entry {shown} lies outside of the archive")
        if info.filename in seen:
            raise bad_file(name, f"its entry {shown} is there twice; export it again")
        seen.add(info.filename)
        stored = info.compress_type == zipfile.ZIP_STORED
        if info.flag_bits & 1 or not (stored or info.compress_type == zipfile.ZIP_DEFLATED):
            raise bad_file(name, f"its entry {shown} is encrypted or packed in an unknown way")
        if stored and info.compress_size != info.file_size:
            raise bad_file(name, f"its entry {shown} lies about its length; download it again")
        inflated += 0 if stored else info.file_size
    if inflated > _MAX_INFLATED:
        raise bad_file(
            name, f"its entries unpack to {inflated:,} bytes, over {_MAX_INFLATED:,} (a zip bomb)"
        )
    end = 0
    for info in sorted(entries, key=lambda i: i.header_offset):
        if info.header_offset < end:
            raise bad_file(name, f"its entry {short(info.filename)} overlaps the one before")
        end = info.header_offset + 30 + len(info.orig_filename) + info.compress_size
    if end > size:
        raise bad_file(name, "its entries go on past its end; download it again")
