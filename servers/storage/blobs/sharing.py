"""Tensors that files share: which parts of a new file the store has already.

The first file with a tensor keeps it, as the plain file that engines map. A later safetensors or
GGUF file that shares enough of its bytes is stored as pieces: ranges of files that are there, and
one new blob, its pack, with what is its own. See docs/adr/0007-tensors-stored-once.md.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, select

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.blobs.reader import Piece
from llmos.servers.storage.db.tables import insert_new
from llmos.servers.storage.db.tables_blobs import blobs, tensors
from llmos.servers.storage.formats import gguf
from llmos.servers.storage.formats.kinds import Kind, kind_of

SMALLEST = 4096  # bytes; smaller tensors are not worth a row
WORTH = 256 << 10  # bytes to be saved at least ...
WORTH_PART = 8  # ... and one in so many of the file's
_THREADS = min(4, os.cpu_count() or 1)
_BATCH = 500  # digests asked for in one query


@dataclass(frozen=True)
class Tensor:
    """Where in a file a tensor's bytes are."""

    digest: str
    start: int
    length: int


@dataclass
class Plan:
    """How to store a file: `pieces` in order, where source "" is the pack of its own bytes."""

    pieces: list[Piece] = field(default_factory=list)
    own: list[tuple[int, int]] = field(default_factory=list)  # ranges of the file in the pack
    tensors: list[Tensor] = field(default_factory=list)  # of the pack
    shared: int = 0  # bytes
    _packed: int = 0

    def add_shared(self, source: str, start: int, length: int) -> None:
        """Take bytes from `source`."""
        last = self.pieces[-1] if self.pieces else None
        if last and last.source == source and last.start + last.length == start:
            self.pieces[-1] = Piece(source, last.start, last.length + length)
        else:
            self.pieces.append(Piece(source, start, length))
        self.shared += length

    def add_own(self, start: int, length: int) -> int:
        """Put a range of the file into the pack; return where in the pack it begins."""
        at = self._packed
        if length:
            self.add_shared("", at, length)
            self.shared -= length
            self.own.append((start, length))
            self._packed += length
        return at


def scan(path: Path) -> list[Tensor]:
    """Return the tensors of a safetensors or GGUF file, by place; nothing for other files."""
    try:
        places = _places(path)
    except (InvalidArgument, ValueError):  # not a sound model: it is stored as it is
        return []
    if not places:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        with memoryview(data) as view, ThreadPoolExecutor(_THREADS) as pool:

            def one(place: tuple[int, int]) -> Tensor:
                start, length = place
                with view[start : start + length] as part:
                    return Tensor(hashlib.sha256(part).hexdigest(), start, length)

            return list(pool.map(one, places))


def _places(path: Path) -> list[tuple[int, int]]:
    kind = kind_of(path)
    if kind is Kind.GGUF:
        found = gguf.tensor_ranges(path.name, path)
    elif kind is Kind.SAFETENSORS:
        found = _safetensors(path)
    else:
        return []
    found = sorted(place for place in found if place[1] >= SMALLEST)
    end, size = 0, path.stat().st_size
    for start, length in found:
        if start < end or start + length > size:
            return []
        end = start + length
    return found


def _safetensors(path: Path) -> list[tuple[int, int]]:
    from safetensors import SafetensorError, safe_open  # its checks of the header are thorough

    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as exc:
        raise InvalidArgument("BAD_MODEL_FILE", str(exc)) from exc
    import json

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = 8 + length
    return [
        (data + tensor["data_offsets"][0], tensor["data_offsets"][1] - tensor["data_offsets"][0])
        for name, tensor in header.items()
        if name != "__metadata__"
    ]


def known(sql: Connection, digests: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return {tensor's digest: (blob, first byte)} of those that sound files have."""
    found = dict[str, tuple[str, int]]()
    for batch in _batches(digests):
        query = (
            select(tensors.c.digest, tensors.c.sha256, tensors.c.start)
            .join(blobs, blobs.c.sha256 == tensors.c.sha256)
            .where(tensors.c.digest.in_(batch), blobs.c.fault == "")
        )
        found |= {row.digest: (row.sha256, row.start) for row in sql.execute(query)}
    return found


def plan(size: int, found: Sequence[Tensor], stored: Mapping[str, tuple[str, int]]) -> Plan | None:
    """Return how to store a file of `size` bytes as pieces; None when it is not worth it."""
    saved = sum(tensor.length for tensor in found if tensor.digest in stored)
    if saved < WORTH or saved * WORTH_PART < size:
        return None
    made, at, packed = Plan(), 0, dict[str, int]()
    for tensor in found:
        made.add_own(at, tensor.start - at)
        if there := stored.get(tensor.digest):
            made.add_shared(*there, tensor.length)
        elif tensor.digest in packed:
            made.add_shared("", packed[tensor.digest], tensor.length)
        else:
            packed[tensor.digest] = made.add_own(tensor.start, tensor.length)
            made.tensors.append(Tensor(tensor.digest, packed[tensor.digest], tensor.length))
        at = tensor.start + tensor.length
    made.add_own(at, size - at)
    return made


def remember(sql: Connection, sha256: str, found: Sequence[Tensor]) -> None:
    """Let later files share the tensors of a blob of form 0."""
    for i in range(0, len(found), _BATCH):
        rows = {
            t.digest: {
                "digest": t.digest,
                "sha256": sha256,
                "start": t.start,
                "length": t.length,
            }
            for t in found[i : i + _BATCH]
        }
        sql.execute(insert_new(sql, tensors), list(rows.values()))


def _batches(items: Sequence[str]) -> Iterator[Sequence[str]]:
    for i in range(0, len(items), _BATCH):
        yield items[i : i + _BATCH]
