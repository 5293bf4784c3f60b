"""Text files: checked as they are read, so that what reads them gets sound UTF-8."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import Any

from llmos.servers.storage.data.faults import bad_data, bad_option
from llmos.servers.storage.names import short

MAX_ROW = 8 << 20  # bytes of one line or row
_CHUNK = 1 << 20
_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NOT_UTF8 = "convert it to UTF-8 or name its encoding, e.g. --encoding latin-1"


def decoder_of(encoding: str) -> codecs.IncrementalDecoder:
    """Return a strict decoder. Raises BAD_OPTION."""
    try:
        found = codecs.lookup(encoding or "utf-8")
        if not getattr(found, "_is_text_encoding", True):  # e.g. base64
            raise LookupError
    except (LookupError, ValueError) as exc:
        raise bad_option(
            f"{short(encoding)} is not an encoding; give one like utf-8 or latin-1."
        ) from exc
    return found.incrementaldecoder("strict")


class Text(io.RawIOBase):
    """A file's text as UTF-8 without byte order mark.

    Reading raises BAD_DATA_FILE with the line at a NUL, at bytes that are not in the encoding, and
    at a line over `limit`.
    """

    def __init__(
        self, file: io.RawIOBase, name: str, encoding: str = "", limit: int = MAX_ROW
    ) -> None:
        """Own `file`; errors name it `name`. limit: bytes."""
        self._limit = limit
        self._file = file
        self._name = name
        self._decoder = decoder_of(encoding)
        self._encoding = codecs.lookup(encoding or "utf-8").name
        self._ready = memoryview(b"")
        self._line = 1
        self._length = 0  # bytes since the last line end
        self._first = True
        self._end = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read at most len(buffer) bytes. Raises BAD_DATA_FILE."""
        while not self._ready and not self._end:
            self._ready = memoryview(self._next())
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _next(self) -> bytes:
        raw = self._file.read(_CHUNK) or b""
        self._end = not raw
        if self._first and self._encoding == "utf-8" and raw.startswith(_BOMS):
            raise bad_data(self._name, "it is UTF-16", "convert it to UTF-8, or --encoding utf-16")
        try:
            text = self._decoder.decode(raw, self._end)
        except UnicodeDecodeError as exc:
            line = self._line + exc.object[: exc.start].count(b"\n")
            fault = "bytes that are not " + ("UTF-8" if self._encoding == "utf-8" else "in it")
            raise bad_data(self._name, fault, _NOT_UTF8, line=line) from exc
        if self._first and text:
            self._first, text = False, text.removeprefix("\ufeff")
        data = text.encode("utf-8", "replace")
        self._check(data)
        return data

    def _check(self, data: bytes) -> None:
        if (at := data.find(b"\0")) >= 0:
            line = self._line + data.count(b"\n", 0, at)
            raise bad_data(self._name, "a NUL byte", "is it text? Remove the NULs", line=line)
        start = 0
        for end in (data.find(b"\n"), len(data)):  # a line within a chunk is short enough
            if end >= start and self._length + end - start > self._limit:
                fault = f"over {self._limit >> 20} MiB in one line"
                raise bad_data(self._name, fault, "break it into lines", line=self._line)
            if end >= 0 and end < len(data):
                self._length, start = 0, data.rfind(b"\n") + 1
        self._length += len(data) - start
        self._line += data.count(b"\n")

    def lines(self) -> Iterator[bytes]:
        """Yield the lines without their ends."""
        rest = b""
        while data := self.read(_CHUNK):
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            yield from (line.removesuffix(b"\r") for line in lines)
        if rest:
            yield rest.removesuffix(b"\r")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
