"""The response cache of one model: answers by what was asked and by whom. Opt-in.

A tenant never gets, nor can time, what another one asked: the tenant is part of the key.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.servers.execution.engine.serving.config import CacheConfig

Tensors = Mapping[str, npt.NDArray[Any]]
_OVERHEAD = 512  # bytes of an entry beside its arrays


def key(tenant: str, inputs: Tensors, outputs: Sequence[str]) -> bytes:
    """Return what stands for a request."""
    digest = hashlib.blake2b(digest_size=24)
    for part in (tenant, *outputs, ""):
        _text(digest, part)
    for name in sorted(inputs):
        array = inputs[name]
        _text(digest, f"{name}|{array.dtype}|{array.shape}")
        if array.dtype == object:
            for item in array.reshape(-1).tolist():
                raw = item if isinstance(item, bytes) else str(item).encode()
                digest.update(len(raw).to_bytes(8, "little") + raw)
        else:
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _text(digest: Any, text: str) -> None:
    raw = text.encode()
    digest.update(len(raw).to_bytes(8, "little") + raw)


class Cache:
    """Least recently used answers within a number of bytes. For one event loop."""

    def __init__(self, config: CacheConfig) -> None:
        """Start empty."""
        self._limit = int(config.mb * (1 << 20))
        self._ttl_s = config.ttl_s
        self._entries: OrderedDict[bytes, tuple[float, int, dict[str, npt.NDArray[Any]]]] = (
            OrderedDict()
        )
        self.size = 0

    def get(self, wanted: bytes) -> dict[str, npt.NDArray[Any]] | None:
        """Return a kept answer; None when there is none, or it is too old."""
        found = self._entries.get(wanted)
        if found is None:
            return None
        if time.monotonic() - found[0] > self._ttl_s:
            self._drop(wanted)
            return None
        self._entries.move_to_end(wanted)
        return dict(found[2])

    def put(self, wanted: bytes, answer: Tensors) -> None:
        """Keep an answer; drops older ones to stay within the limit."""
        size = _OVERHEAD + sum(_bytes(array) for array in answer.values())
        if size > self._limit:
            return
        if wanted in self._entries:
            self._drop(wanted)
        kept = {name: array.copy() for name, array in answer.items()}
        for array in kept.values():
            array.flags.writeable = False
        self._entries[wanted] = (time.monotonic(), size, kept)
        self.size += size
        while self.size > self._limit:
            self._drop(next(iter(self._entries)))

    def _drop(self, wanted: bytes) -> None:
        self.size -= self._entries.pop(wanted)[1]


def _bytes(array: npt.NDArray[Any]) -> int:
    if array.dtype == object:
        return sum(len(item) + 64 for item in array.reshape(-1).tolist())
    return array.nbytes
