"""The table of contents of a zip file, read with bounds."""

from __future__ import annotations

import io
import struct
import zipfile

MAX_DIRECTORY = 64 << 20  # bytes of the table of contents
_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


def directory_size(file: io.BufferedReader) -> int:
    """Return the bytes of a zip file's table of contents, as it says itself; -1 = not a zip."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - 65557, 0))
    tail = file.read(65557)
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 22:
        return -1
    (length,) = struct.unpack_from("<I", tail, at + 12)
    if length != 0xFFFFFFFF:
        return int(length)
    locator = tail[max(at - 20, 0) : at]
    if not locator.startswith(_LOCATOR) or len(locator) < 20:
        return -1
    (where,) = struct.unpack_from("<Q", locator, 8)
    file.seek(min(where, size))
    record = file.read(56)
    if not record.startswith(_END64) or len(record) < 56:
        return -1
    return int(struct.unpack_from("<Q", record, 40)[0])


def contents(file: io.BufferedReader) -> list[str] | None:
    """Return the names in a zip file; None when it has no sound table of contents."""
    try:
        if not 0 <= directory_size(file) <= MAX_DIRECTORY:
            return None
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error):
        return None
