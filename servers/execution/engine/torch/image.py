"""Weights as they are computed with, in a file that all workers of a model map.

The first worker of a version reads, unpacks and repacks its weights, writes them here while it
gives its first answers, and goes on over the file; it and all later ones map it read-only. So N
workers have one physical copy, in the page cache; the kernel writes nothing back and drops pages
that nobody maps when memory is short, and the next worker finds them in the cache or on the disk.
A file: the length of a header (8 bytes, little endian), the header (JSON), and the tensors' bytes
from whole pages on.
"""

from __future__ import annotations

import base64
import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from llmos.servers.execution.engine.torch import opaque

_ALIGN = 4096
_LENGTH = 8


class BadImage(Exception):
    """The file is not a whole image of this version; args[0] says why."""


def write(file: BinaryIO, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write an image. facts: what else the reader wants to know, as JSON. Raises OSError."""
    entries: dict[str, dict[str, Any]] = {}
    contents: list[memoryview] = []
    at = 0
    for name, tensor in tensors.items():
        data, layout = _content(tensor)
        entries[name] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "at": at,
            "bytes": len(data),
            "layout": base64.b64encode(layout).decode(),
        }
        contents.append(data)
        at += _up(len(data))
    header = json.dumps({"facts": dict(facts), "tensors": entries}).encode()
    file.write(len(header).to_bytes(_LENGTH, "little") + header)
    for entry, data in zip(entries.values(), contents, strict=True):
        file.seek(_up(_LENGTH + len(header)) + entry["at"])
        file.write(data)
    file.truncate(_up(_LENGTH + len(header)) + at)


class Image:
    """A mapped image; its tensors keep the mapping alive. They must not be written to."""

    def __init__(self, path: Path) -> None:
        """Map a file. Raises BadImage, OSError."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _LENGTH:
                raise BadImage("it is empty")
            self._memory = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
        length = int.from_bytes(self._memory[:_LENGTH], "little")
        try:
            header = json.loads(self._memory[_LENGTH : _LENGTH + length])
            self._entries: dict[str, dict[str, Any]] = header["tensors"]
            self.facts: dict[str, Any] = header["facts"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadImage("its header is damaged") from error
        self._base = _up(_LENGTH + length)
        end = max((e["at"] + e["bytes"] for e in self._entries.values()), default=0)
        if self._base + end > size:
            raise BadImage("it is truncated")
        # numpy, as torch.frombuffer warns of read-only memory; the address is all that is wanted.
        self._bytes = np.frombuffer(self._memory, np.uint8)

    def names(self) -> Iterable[str]:
        """Return the tensors' names."""
        return self._entries

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, by the rest of their names."""
        return {
            name.removeprefix(prefix): self.tensor(name)
            for name in self._entries
            if name.startswith(prefix)
        }

    def tensor(self, name: str) -> Tensor:
        """Return a tensor over the mapped bytes. Raises BadImage."""
        entry = self._entries[name]
        dtype: torch.dtype = getattr(torch, entry["dtype"])
        at = self._base + entry["at"]
        if entry["layout"]:
            layout = base64.b64decode(entry["layout"])
            try:
                made = opaque.tensor_at(self._bytes.ctypes.data + at, entry["shape"], dtype, layout)
            except ValueError as error:
                raise BadImage(f"{name}: {error}") from error
            made._keep = self._bytes  # type: ignore[attr-defined]
            return made
        array = self._bytes[at : at + entry["bytes"]]
        if entry["bytes"] != math.prod(entry["shape"]) * dtype.itemsize:
            raise BadImage(f"{name} has {entry['bytes']} bytes")
        return _view(array, dtype, entry["shape"])


def _view(array: np.ndarray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    import warnings

    with warnings.catch_warnings():  # it is true that nobody may write: the engine does not
        warnings.filterwarnings("ignore", message="The given .* is not writable")
        return torch.from_numpy(array).view(dtype).view(shape)


def _content(tensor: Tensor) -> tuple[memoryview, bytes]:
    if tensor.is_mkldnn:
        return opaque.content(tensor)
    plain = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return memoryview(plain.numpy().data).cast("B"), b""


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def flat(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a value by name: a tensor, or what has `parts()`; None has none."""
    if isinstance(value, Tensor):
        yield name, value
    elif value is not None:
        for part, tensor in value.parts().items():
            yield f"{name}.{part}", tensor
