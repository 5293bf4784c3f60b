"""Attention of one step by torch's own operators: where there are no compiled kernels, and on GPUs.

New keys and values are written to the cache, then every new token looks back. Plain matmul,
softmax, matmul: with one query token torch's fused attention is up to 11 times slower in bf16.
Each query row is summed in an order that depends on its own position only: spans are padded to
multiples of 64 positions with exact zeros, and products to `rows` query rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from llmos.servers.execution.engine.torch.kv import Geometry, KVCache, Span
from llmos.servers.execution.engine.torch.pages import BLOCK

_STRIDE = 64 // BLOCK  # blocks; whole vectors, so that padding adds exact zeros


class StepAttention:
    """What attention needs to know of a step, worked out once for all layers."""

    def __init__(self, cache: KVCache, spans: Sequence[Span], rows: int) -> None:
        """Plan for tokens that come in the order of `spans`."""
        self._cache = cache
        g = cache.geometry
        at = [(span, span.start + i) for span in spans for i in range(span.count)]
        self._block = torch.tensor([s.table[p // BLOCK] for s, p in at], device=g.device)
        self._offset = torch.tensor([p % BLOCK for _, p in at], device=g.device)
        self._parts = [
            _Part(g, list(group), rows) for _, group in groupby(spans, key=lambda s: s.count)
        ]

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Return [tokens, heads * head_dim] for rotated `qkv` [tokens, heads + 2 kv, head_dim]."""
        g, keys, values = self._cache.geometry, self._cache.keys[layer], self._cache.values[layer]
        keys[self._block, :, :, self._offset] = qkv[:, g.heads : g.heads + g.kv_heads]
        values[self._block, :, self._offset] = qkv[:, g.heads + g.kv_heads :]
        parts, at = [], 0
        for part in self._parts:
            parts.append(part.attend(qkv[at : at + part.tokens, : g.heads], keys, values))
            at += part.tokens
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Part:
    """Spans of as many tokens each: one batched product."""

    def __init__(self, g: Geometry, spans: Sequence[Span], pad: int) -> None:
        self._g, self._spans, self._count = g, len(spans), spans[0].count
        self.tokens = self._spans * self._count
        self._rows = max(self._count, -(-pad // g.group))
        last = max(span.start + span.count for span in spans)
        blocks = -(-last // (BLOCK * _STRIDE)) * _STRIDE
        # What lies after a table's end is masked, whichever block is named.
        tables = [[*span.table[:blocks], *[0] * (blocks - len(span.table))] for span in spans]
        self._tables = torch.tensor(tables, device=g.device)
        starts = torch.tensor([span.start for span in spans], device=g.device)
        ends = starts[:, None] + torch.arange(self._rows, device=g.device)
        hidden = torch.arange(blocks * BLOCK, device=g.device) > ends[..., None]
        mask = torch.zeros(hidden.shape, dtype=g.dtype, device=g.device)
        mask = mask.masked_fill_(hidden, -torch.inf).repeat(1, g.group, 1)
        self._mask = mask.repeat_interleave(g.kv_heads, 0)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what the queries [tokens, heads, head_dim] see."""
        g, spans, count, rows = self._g, self._spans, self._count, self._rows
        q = q.view(spans, count, g.kv_heads, g.group, g.head_dim)
        if rows > count:
            q = torch.cat((q, q.new_zeros(spans, rows - count, *q.shape[2:])), 1)
        q = q.permute(0, 2, 3, 1, 4).reshape(spans * g.kv_heads, -1, g.head_dim)
        k = keys[self._tables].permute(0, 2, 3, 1, 4).reshape(len(q), g.head_dim, -1)
        v = values[self._tables].permute(0, 2, 1, 3, 4).reshape(len(q), -1, g.head_dim)
        scores = torch.baddbmm(self._mask, q, k, alpha=g.head_dim**-0.5)
        out = torch.bmm(torch.softmax(scores, -1), v)
        out = out.view(spans, g.kv_heads, g.group, rows, g.head_dim)[:, :, :, :count]
        return out.permute(0, 3, 1, 2, 4).reshape(self.tokens, -1)
