"""The memory of keys and values: blocks of one size that sequences of any length are made of."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llmos.servers.execution.engine.torch.pages import BLOCK, Pages

if TYPE_CHECKING:
    from llmos.servers.execution.engine.torch.adapter import Adapter

_KINDS = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}


@dataclass(frozen=True)
class Geometry:
    """What the cache has to know of the model. `group`: query heads per key head."""

    layers: int
    kv_heads: int
    group: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def heads(self) -> int:
        """Return the number of query heads."""
        return self.kv_heads * self.group


@dataclass(frozen=True)
class Span:
    """`count` new tokens of a sequence, the first at position `start`.

    table: its blocks in order, enough for all of them. Those of the new tokens are its own.
    adapter: what its rows are computed with beside the model.
    """

    table: Sequence[int]
    start: int
    count: int
    adapter: Adapter | None = None


class KVCache:
    """Keys and values of all sequences, in blocks. Not thread-safe: the step loop owns it.

    keys: [layers, blocks, kv_heads, head_dim, BLOCK], so that eight scores are one vector product;
    values: [layers, blocks, kv_heads, BLOCK, head_dim].
    """

    def __init__(self, geometry: Geometry, budget: int) -> None:
        """Make room for `budget` positions. On the CPU it costs memory only once written to."""
        self.geometry, g = geometry, geometry
        blocks = -(-budget // BLOCK)
        self.pages = Pages(blocks)
        self.keys = self._allocate(g.layers, blocks, g.kv_heads, g.head_dim, BLOCK)
        self.values = self._allocate(g.layers, blocks, g.kv_heads, BLOCK, g.head_dim)

    def scrub(self, blocks: Sequence[int]) -> None:
        """Write zeros over blocks that may hold numbers that are not finite."""
        where = torch.tensor(blocks, device=self.geometry.device, dtype=torch.int64)
        self.keys[:, where] = 0
        self.values[:, where] = 0

    @property
    def block_bytes(self) -> int:
        """Return the size of a block: its keys and values of all layers."""
        g = self.geometry
        return 2 * g.layers * g.kv_heads * g.head_dim * BLOCK * g.dtype.itemsize

    def copy_out(self, blocks: Sequence[int], out: memoryview) -> None:
        """Write blocks one after the other into `out`, of exactly their size: keys, then values."""
        flat = torch.frombuffer(out, dtype=torch.uint8)
        for i, block in enumerate(blocks):
            own = flat[i * self.block_bytes : (i + 1) * self.block_bytes]
            for part, target in zip((self.keys, self.values), own.chunk(2), strict=True):
                source = part[:, block]
                target.view(part.dtype).view(source.shape).copy_(source)

    def copy_in(self, block: int, data: memoryview) -> None:
        """Fill a block with what `copy_out` wrote."""
        # numpy, as torch warns of memory that must not be written to.
        halves = np.frombuffer(data, _KINDS[self.geometry.dtype]).reshape(2, -1)
        for part, half in zip((self.keys, self.values), halves, strict=True):
            target = part[:, block]
            source = torch.from_numpy(half.reshape(target.shape).copy())
            target.copy_(source.view(part.dtype))

    def _allocate(self, *shape: int) -> Tensor:
        g = self.geometry
        if g.device.type != "cpu":
            return torch.zeros(shape, dtype=g.dtype, device=g.device)
        # Pages as they are touched, and small ones: numpy would ask for large pages, of which a
        # first block takes one in every layer, for keys and for values.
        kind = np.dtype(_KINDS[g.dtype])
        size = max(1, math.prod(shape)) * kind.itemsize
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        flat = np.frombuffer(memory, kind, math.prod(shape))
        return torch.from_numpy(flat).view(g.dtype).view(shape)
