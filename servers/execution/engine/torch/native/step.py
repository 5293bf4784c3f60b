"""One step for the compiled kernels: which row belongs where, and the memory they work in."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from llmos.servers.execution.engine.torch.config import LlamaConfig
from llmos.servers.execution.engine.torch.kv import KVCache, Span
from llmos.servers.execution.engine.torch.native.four import SMALL
from llmos.servers.execution.engine.torch.native.layout import CLayer, CShape, CStep
from llmos.servers.execution.engine.torch.pages import BLOCK

_HEADS = 3  # query heads that the kernel scores together


def suits(config: LlamaConfig) -> bool:
    """Say whether the kernels take such a model: they work on vectors of 8 numbers."""
    return not (config.hidden % 8 or config.head_dim % 8 or config.ffn % 8)


def shape_of(config: LlamaConfig, threads: int, cache: torch.dtype) -> CShape:
    """Return the constants of a model; `cache` is float32 or float16."""
    return CShape(
        hidden=config.hidden,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        ffn=config.ffn,
        half=cache == torch.float16,
        eps=config.eps,
        threads=threads,
    )


class Workspace:
    """Buffers that grow with the largest step so far, and the description of the present one."""

    def __init__(self, config: LlamaConfig, threads: int) -> None:
        """Hold nothing yet."""
        self._threads = threads
        heads = config.heads * config.head_dim
        self._widest_in = -(-max(config.hidden, heads, config.ffn) // 64) * 64
        self._qkv = heads + 2 * config.kv_heads * config.head_dim
        self._widest_out = max(self._qkv, 2 * config.ffn)
        self._widest_seen = max(heads, config.hidden)
        self._rows = self._scores = 0
        self.c = CStep()
        self._kept: list[Tensor] = []

    def plan(self, cache: KVCache, spans: Sequence[Span], turns: Tensor, x: Tensor | None) -> CStep:
        """Describe a step. turns: float32 [rows, head_dim]; x: float32 [rows, hidden], updated."""
        where = [(i, span.start + j) for i, span in enumerate(spans) for j in range(span.count)]
        sequence = torch.tensor([i for i, _ in where])
        position = torch.tensor([at for _, at in where])
        width = max(-(-(span.start + span.count) // BLOCK) for span in spans)
        tables = torch.tensor(
            [[*s.table[:width], *[0] * (width - len(s.table))] for s in spans], dtype=torch.int32
        )
        self._reserve(len(where), width)
        c = self.c
        c.rows, c.table_width = len(where), width
        c.turns, c.sequence, c.position = (t.data_ptr() for t in (turns, sequence, position))
        c.tables, c.x = tables.data_ptr(), None if x is None else x.data_ptr()
        self._kept = [turns, sequence, position, tables, *([] if x is None else [x])]
        return c

    def rows_only(self, x: Tensor) -> CStep:
        """Describe rows for a matrix alone."""
        self._reserve(len(x), 1)
        self.c.rows, self.c.x, self._kept = len(x), x.data_ptr(), [x]
        return self.c

    @property
    def wide(self) -> Tensor:
        """Return the rows' queries, keys and values: float32 [rows, ...], to be filled."""
        return self._wide[: self.c.rows * self._qkv].view(self.c.rows, self._qkv)

    @property
    def seen(self) -> Tensor:
        """Return the flat buffer of what attention saw."""
        return self._seen

    def _reserve(self, rows: int, width: int) -> None:
        if rows > self._rows:
            self._rows = rows
            self._rounded = torch.empty(rows * self._widest_in, dtype=torch.int16)
            self._scale = torch.empty(rows)
            self._sums = torch.empty(rows * (self._widest_in // SMALL))
            self._wide = torch.empty(rows * self._widest_out)
            self._seen = torch.empty(rows * self._widest_seen)
            self.c.rounded, self.c.row_scale = self._rounded.data_ptr(), self._scale.data_ptr()
            self.c.sums = self._sums.data_ptr()
            self.c.wide, self.c.seen = self._wide.data_ptr(), self._seen.data_ptr()
        if width > self._scores:
            self._scores = 2 * width
            self._lines = torch.empty(self._threads * _HEADS * self._scores * BLOCK)
            self.c.scores = self._lines.data_ptr()


def turns_of(angles: Tensor) -> Tensor:
    """Return cosines and sines by pairs, float32 [rows, 2 * pairs], of `angles` [rows, pairs]."""
    return torch.stack((angles.cos(), angles.sin()), -1).flatten(1).contiguous()


class NativeAttention:
    """Attention by the compiled kernel for layers that torch computes; as StepAttention."""

    def __init__(
        self,
        library: ctypes.CDLL,
        config: LlamaConfig,
        threads: int,
        cached: torch.dtype = torch.float32,
    ) -> None:
        """Prepare for a model whose cache is of the type `cached`, float32 or float16."""
        self._library, self._config = library, config
        self._shape = shape_of(config, threads, cached)
        self._space = Workspace(config, threads)
        self._null = CLayer()

    def plan(self, cache: KVCache, spans: Sequence[Span], angles: Tensor) -> None:
        """Describe the step that follows; `angles` [rows, head_dim / 2]."""
        self._cache = cache
        self._space.plan(cache, spans, turns_of(angles), None)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Return [rows, heads * head_dim] for `qkv` [rows, ...], which is not rotated yet."""
        space, keys, values = self._space, self._cache.keys[layer], self._cache.values[layer]
        space.wide.copy_(qkv.flatten(1))
        self._library.llmos_attention(
            ctypes.byref(self._shape),
            ctypes.byref(self._null),
            ctypes.byref(space.c),
            keys.data_ptr(),
            values.data_ptr(),
        )
        width = self._config.heads * self._config.head_dim
        return space.seen[: len(qkv) * width].view(len(qkv), width).to(qkv.dtype)
