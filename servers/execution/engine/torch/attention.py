"""Attention of one step: new keys and values are written, then every new token looks back.

Plain matmul, softmax, matmul: with one query token torch's fused attention is up to 11 times
slower in bf16. Each query row is summed in an order that depends on its own position only: spans
are padded to multiples of 64 positions with exact zeros, and products to `rows` query rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmos.servers.execution.engine.torch.kv import STRIDE, Geometry, Span, group_spans


class _Part(Protocol):
    rows: slice

    def attend(self, layer: int, qkv: Tensor) -> Tensor: ...


class StepAttention:
    """What attention needs to know of a step, worked out once for all layers."""

    def __init__(self, geometry: Geometry, spans: Sequence[Span], rows: int) -> None:
        """Plan for tokens that come in the order of `spans`; notes in the seats what they hold."""
        self._parts: list[_Part] = []
        at = 0
        for group in group_spans(spans):
            count = sum(span.count for span in group)
            where = slice(at, at + count)
            if group[0].count == 1:
                self._parts.append(_Tokens(geometry, group, where, rows))
            else:
                self._parts.append(_Chunk(geometry, group[0], where, rows))
            for span in group:
                span.seat.used = span.start + span.count
            at += count

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Return [tokens, heads * head_dim] for rotated `qkv` [tokens, heads + 2 kv, head_dim]."""
        parts = [part.attend(layer, qkv[part.rows]) for part in self._parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _padded(length: int, limit: int) -> int:
    return min(-(-length // STRIDE) * STRIDE, limit)


class _Tokens:
    """One new token each of several sequences in one slab: a batched product over its seats."""

    def __init__(self, g: Geometry, spans: Sequence[Span], rows: slice, pad: int) -> None:
        self.rows, self._g, self._slab = rows, g, spans[0].seat.slab
        self._pad = max(g.group, pad)
        slots = [span.seat.slot for span in spans]
        self._seats = max(slots) + 1
        self._aligned = slots == list(range(self._seats))
        self._slots = torch.tensor(slots, device=g.device)
        self._at = torch.tensor([span.start for span in spans], device=g.device)
        self._length = _padded(max(span.start for span in spans) + 1, self._slab.positions)
        # Seats that take no part this time are computed along and not read.
        ends = torch.zeros(self._seats, dtype=torch.int64, device=g.device)
        ends[self._slots] = self._at
        hidden = torch.arange(self._length, device=g.device) > ends[:, None]
        mask = torch.zeros(hidden.shape, dtype=g.dtype, device=g.device)
        mask.masked_fill_(hidden, -torch.inf)
        self._mask = mask[:, None].repeat_interleave(g.kv_heads, 0)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        g, count = self._g, qkv.shape[0]
        kv = self._slab.data[layer]
        kv[:, self._slots, :, self._at] = qkv[:, g.heads :].view(count, 2, g.kv_heads, g.head_dim)
        q = qkv[:, : g.heads].view(count, g.kv_heads, g.group, g.head_dim)
        if not self._aligned or self._pad > g.group:
            padded = q.new_zeros(self._seats, g.kv_heads, self._pad, g.head_dim)
            if self._aligned:
                padded[:, :, : g.group] = q
            else:
                padded[self._slots, :, : g.group] = q
            q = padded
        keys, values = (
            part[: self._seats, :, : self._length].flatten(0, 1) for part in (kv[0], kv[1])
        )
        out = _weighted(q.reshape(-1, self._pad, g.head_dim), keys, values, self._mask)
        out = out.view(self._seats, g.kv_heads, self._pad, g.head_dim)[:, :, : g.group]
        return (out if self._aligned else out[self._slots]).reshape(count, -1)


class _Chunk:
    """Several new tokens of one sequence."""

    def __init__(self, g: Geometry, span: Span, rows: slice, pad: int) -> None:
        self.rows, self._g, self._span = rows, g, span
        self._end = span.start + span.count
        self._length = _padded(self._end, span.seat.slab.positions)
        self._count = max(span.count, -(-pad // g.group))
        ends = torch.arange(span.start, span.start + self._count, device=g.device)
        hidden = torch.arange(self._length, device=g.device) > ends[:, None]
        mask = torch.zeros(hidden.shape, dtype=g.dtype, device=g.device)
        self._mask = mask.masked_fill_(hidden, -torch.inf).repeat(g.group, 1)[None]

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        g, seat, count = self._g, self._span.seat, self._span.count
        kv = seat.slab.data[layer, :, seat.slot]
        new = qkv[:, g.heads :].view(count, 2, g.kv_heads, g.head_dim)
        kv[:, :, self._span.start : self._end] = new.permute(1, 2, 0, 3)
        q = qkv[:, : g.heads].view(count, g.kv_heads, g.group, g.head_dim)
        if self._count > count:
            q = torch.cat((q, q.new_zeros(self._count - count, *q.shape[1:])))
        q = q.permute(1, 2, 0, 3).reshape(g.kv_heads, -1, g.head_dim)
        out = _weighted(q, kv[0, :, : self._length], kv[1, :, : self._length], self._mask)
        out = out.view(g.kv_heads, g.group, self._count, g.head_dim)[:, :, :count]
        return out.permute(2, 0, 1, 3).reshape(count, -1)


def _weighted(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + mask) v; all [heads, rows, ...], the mask broadcast."""
    scale = q.shape[-1] ** -0.5
    scores = torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=scale)
    return torch.bmm(torch.softmax(scores, -1), values)
