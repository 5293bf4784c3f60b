"""Reads the header of a GGUF file: metadata and where each tensor lies. Owns no weights.

The `gguf` package's reader takes 5 s for the 98,000 strings of a small model's tokenizer (it makes
array views of each); this one takes 0.05 s. Dequantisation is left to that package.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.lib.errors import Unavailable

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: shape in row-major order (rows first), ggml type, offset in the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself. Arrays of metadata are absent if they were skipped."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


class _Reader:
    """A cursor over the mapped file; every read is checked against the end of the file."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes."""
        if size < 0 or self.at + size > len(self.data):
            raise self._cut()
        self.at += size
        return self.data[self.at - size : self.at]

    def scalar(self, code: str) -> Any:
        """Return one little-endian number of struct code `code`."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        """Return a length-prefixed text; what is not UTF-8 is replaced."""
        return bytes(self.take(self.scalar("Q"))).decode("utf-8", "replace")

    def array(self, keep: bool) -> list[Any] | None:
        """Return an array of numbers or strings, or step over it."""
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind in _SCALARS:
            raw = self.take(count * struct.calcsize("<" + _SCALARS[kind]))
            return list(struct.unpack(f"<{count}{_SCALARS[kind]}", raw)) if keep else None
        if kind != _STRING:
            raise damaged(self.path, f"its metadata has an array of unknown type {kind}")
        return self._strings(count, keep)

    def _strings(self, count: int, keep: bool) -> list[Any] | None:
        """Read as `string` does, `count` times, without a call for each: there are 100,000."""
        data, at, end, found = self.data, self.at, len(self.data), []
        length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > end:
                raise self._cut()
            start = at + 8
            at = start + length(data, at)[0]
            if at > end:
                raise self._cut()
            if keep:
                found.append(str(data[start:at], "utf-8", "replace"))
        self.at = at
        return found if keep else None

    def _cut(self) -> Unavailable:
        return damaged(self.path, "it ends inside its header; copy or import it again")


def damaged(path: Path, why: str) -> Unavailable:
    """Return the error for a model file that cannot be used as it is."""
    return Unavailable("LOAD_FAILED", f"Model file {path.name} cannot be loaded: {why}.")


def read_header(path: Path, *, arrays: bool = True) -> GgufHeader:
    """Read the header; `arrays=False` leaves metadata arrays (the tokenizer) out.

    Raises Unavailable LOAD_FAILED when it is no GGUF file, is truncated or of another version.
    """
    if path.stat().st_size < 24:
        raise damaged(path, "it is too short for a GGUF file")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = _Reader(memoryview(data), path)
    if bytes(reader.take(4)) != b"GGUF":
        raise damaged(path, "it does not start like a GGUF file")
    version = reader.scalar("I")
    if version not in (2, 3):
        raise damaged(path, f"its GGUF version {version} is not 2 or 3; convert it again")
    tensor_count, metadata_count = reader.scalar("Q"), reader.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key, kind = reader.string(), reader.scalar("I")
        if kind == _ARRAY:
            values = reader.array(arrays)
            if values is not None:
                metadata[key] = values
        elif kind == _STRING:
            metadata[key] = reader.string()
        elif kind in _SCALARS:
            metadata[key] = reader.scalar(_SCALARS[kind])
        else:
            raise damaged(path, f"metadata key {key[:80]!r} has unknown type {kind}")
    return GgufHeader(metadata, _read_tensors(reader, tensor_count, metadata))


def _read_tensors(reader: _Reader, count: int, metadata: dict[str, Any]) -> dict[str, TensorInfo]:
    found: list[TensorInfo] = []
    for _ in range(count):
        name, dims = reader.string(), reader.scalar("I")
        if not 1 <= dims <= _MAX_DIMS:
            raise damaged(reader.path, f"tensor {name[:80]!r} has {dims} dimensions")
        shape = tuple(reader.scalar("Q") for _ in range(dims))[::-1]
        found.append(TensorInfo(name, shape, reader.scalar("I"), reader.scalar("Q")))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise damaged(reader.path, f"its alignment {alignment!r} is not a positive number")
    start = -(-reader.at // alignment) * alignment
    return {t.name: TensorInfo(t.name, t.shape, t.type, start + t.offset) for t in found}
