"""Unpacking tar and zip files that may have been made to do harm."""

from __future__ import annotations

import contextlib
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.disk import CHUNK, writing
from llmos.servers.storage.formats import zips
from llmos.servers.storage.names import short
from llmos.servers.storage.places.base import Meter

_MAX_ENTRIES = 10_000
_MAX_DEPTH = 8
_MAX_RATIO = 100  # unpacked to packed; weights hardly shrink at all
_SLACK = 64 << 20  # bytes that may unpack whatever the ratio
_BROKEN: tuple[type[Exception], ...] = (tarfile.TarError, zipfile.BadZipFile, zlib.error)
_BROKEN += (EOFError, ValueError, struct.error, NotImplementedError, RuntimeError)

Entry = tuple[str, IO[bytes]]


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar, tar.gz, tar.xz, tar.bz2 or zip file, by its content."""
    with path.open("rb") as file:
        head = file.read(264)
    if head.startswith(b"PK\x03\x04"):
        return True
    return head[257:262] == b"ustar" or head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"))


def unpack(path: Path, folder: Path, meter: Meter) -> Path:
    """Unpack into `folder`; return the folder that holds the files.

    Raises BAD_ARCHIVE (a link, a device, an entry outside, too many, too much, damaged); then what
    was unpacked so far is still in `folder`. Raises DISK_FULL, Cancelled.
    """
    limit = path.stat().st_size * _MAX_RATIO + _SLACK
    total = count = 0
    with contextlib.closing(_entries(path)) as entries:
        try:
            for name, content in entries:
                count += 1
                if count > _MAX_ENTRIES:
                    raise bad_archive(path, f"it has over {_MAX_ENTRIES:,} entries")
                target = folder / _safe(path, name)
                with writing(folder):
                    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    with target.open("xb") as out:
                        while data := content.read(CHUNK):
                            total += len(data)
                            if total > limit:
                                raise bad_archive(
                                    path, f"it unpacks to over {limit:,} bytes (a zip bomb)"
                                )
                            out.write(data)
                            meter.add(0)
        except FileExistsError as exc:
            raise bad_archive(path, "an entry is there twice") from exc
        except _BROKEN as exc:
            raise bad_archive(path, f"it is damaged ({short(str(exc), 80)[1:-1]})") from exc
    inside = list(folder.iterdir()) if count else []
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _entries(path: Path) -> Generator[Entry, None, None]:
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            if not 0 <= zips.directory_size(file) <= zips.MAX_DIRECTORY:
                raise bad_archive(path, "its table of contents is damaged")
            with zipfile.ZipFile(file) as archive:
                yield from _zip(path, archive)
            return
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            yield from _tar(path, tar)


def _zip(path: Path, archive: zipfile.ZipFile) -> Iterator[Entry]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if mode & 0o170000 not in (0, 0o100000, 0o040000):
            raise bad_archive(path, f"{short(info.filename)} is a link or a device")
        _safe(path, info.orig_filename)
        if not info.is_dir():
            with archive.open(info) as content:
                yield info.orig_filename, content


def _tar(path: Path, tar: tarfile.TarFile) -> Iterator[Entry]:
    for member in tar:
        if member.isdir():
            _safe(path, member.name)
            continue
        content = tar.extractfile(member) if member.isreg() else None
        if content is None:
            raise bad_archive(path, f"{short(member.name)} is a link or a device")
        with content:
            yield member.name, content


def _safe(path: Path, name: str) -> Path:
    """Return an entry's place below the folder. Raises BAD_ARCHIVE when it is not below."""
    parts = [part for part in name.rstrip("/").split("/") if part != "."]
    bad = name.startswith("/") or any(part in ("", "..") or len(part) > 255 for part in parts)
    if bad or len(parts) > _MAX_DEPTH or {"\\", "\0"} & set(name):
        raise bad_archive(path, f"its entry {short(name)} lies outside of it")
    return Path(*parts)


def bad_archive(path: Path, why: str) -> InvalidArgument:
    """Return BAD_ARCHIVE."""
    return InvalidArgument(
        "BAD_ARCHIVE", f"{short(path.name, 100)[1:-1]}: {why}; nothing of it was kept."
    )
