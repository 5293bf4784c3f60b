"""The llama architecture with int8 or int4 weights: all layers are one call of a kernel."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmos.servers.execution.engine.torch.config import LlamaConfig
from llmos.servers.execution.engine.torch.kv import Geometry, KVCache, Span
from llmos.servers.execution.engine.torch.model import Between, Layer, Llama, Model
from llmos.servers.execution.engine.torch.native.layout import CLayer, PackedLinear
from llmos.servers.execution.engine.torch.native.selftest import product
from llmos.servers.execution.engine.torch.native.step import (
    NativeAttention,
    Workspace,
    shape_of,
    turns_of,
)


@dataclass(frozen=True)
class PackedLayer:
    """One layer's weights; norms are float32 vectors, the last two may be None."""

    attn_norm: Tensor
    ffn_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    qkv: PackedLinear
    out: PackedLinear
    gate_up: PackedLinear
    down: PackedLinear

    def c(self) -> CLayer:
        """Return the kernel's view of it."""
        norms = (self.attn_norm, self.ffn_norm, self.q_norm, self.k_norm)
        pointers = (None if norm is None else norm.data_ptr() for norm in norms)
        return CLayer(*pointers, self.qkv.c, self.out.c, self.gate_up.c, self.down.c)


class PackedLlama(Model):
    """Weights int8 or int4, activations 16 bits within products and else float32, cache float16.

    Every row is a function of its own sequence, bit by bit, by the way the kernel sums.
    """

    exact = True

    def __init__(
        self,
        library: ctypes.CDLL,
        config: LlamaConfig,
        embedding: Tensor,
        layers: Sequence[PackedLayer],
        norm: Tensor,
        head: PackedLinear,
        frequencies: Tensor,
        threads: int,
    ) -> None:
        """Take over the weights. embedding: float16 [vocab, hidden]; norm: float32."""
        geometry = Geometry(
            layers=config.layers,
            kv_heads=config.kv_heads,
            group=config.heads // config.kv_heads,
            head_dim=config.head_dim,
            dtype=torch.float16,
            device=embedding.device,
        )
        super().__init__(config, geometry, embedding, frequencies)
        self._library, self._layers, self._norm, self._head = library, layers, norm, head
        self._adopted()
        self._shape = shape_of(config, threads, geometry.dtype)
        self._space = Workspace(config, threads)
        self._threads = threads

    def _adopted(self) -> None:
        self._views = (CLayer * len(self._layers))(*(layer.c() for layer in self._layers))
        self._twin: Llama | None = None  # made when an adapter is used first

    def _body(
        self,
        cache: KVCache,
        x: Tensor,
        angles: Tensor,
        spans: Sequence[Span],
        between: Between | None = None,
    ) -> Tensor:
        x = x.float()
        if any(span.adapter is not None for span in spans):
            return self._with_adapters(cache, x, angles, spans)
        turns, keys, values = turns_of(angles), cache.keys, cache.values
        at, end = 0, self.config.layers
        while True:
            at = self._library.llmos_layers(
                ctypes.byref(self._shape),
                self._views,
                at,
                end,
                ctypes.byref(self._space.plan(cache, spans, turns, x)),
                keys.data_ptr(),
                values.data_ptr(),
                keys.stride(0) * keys.element_size(),
                values.stride(0) * values.element_size(),
                ctypes.byref(self._computed),
                None if between is None else ctypes.byref(self.pause),
            )
            if at == end or between is None:
                return x
            between()  # which may plan steps of its own in the same space

    def _with_adapters(
        self, cache: KVCache, x: Tensor, angles: Tensor, spans: Sequence[Span]
    ) -> Tensor:
        """Run the rows that adapters are added to matrix by matrix, and the others as ever.

        So neither have numbers that depend on the others.
        """
        ends = list(itertools.accumulate(span.count for span in spans))
        for adapted, body in ((False, self._body), (True, self._by_matrix)):
            mine = [(span.adapter is not None) == adapted for span in spans]
            some = list(itertools.compress(spans, mine))
            if some:
                rows = torch.cat(
                    [
                        torch.arange(e - s.count, e)
                        for e, s in itertools.compress(zip(ends, spans, strict=True), mine)
                    ]
                )
                x[rows] = body(cache, x[rows], angles[rows], some)
        return x

    def _by_matrix(
        self, cache: KVCache, x: Tensor, angles: Tensor, spans: Sequence[Span]
    ) -> Tensor:
        if self._twin is None:
            self._twin = self._make_twin()
        x = self._twin._body(cache, x, angles, spans)
        self._computed.value += self.config.layers
        return x

    def _make_twin(self) -> Llama:
        """Return the model in torch's operators over the same weights."""

        def linear(matrix: PackedLinear) -> Any:
            return lambda x: product(self._library, matrix, x, self._threads)

        layers = [
            Layer(
                attn_norm=layer.attn_norm,
                qkv=linear(layer.qkv),
                out=linear(layer.out),
                ffn_norm=layer.ffn_norm,
                gate_up=linear(layer.gate_up),
                down=linear(layer.down),
                q_norm=layer.q_norm,
                k_norm=layer.k_norm,
            )
            for layer in self._layers
        ]
        kernel = NativeAttention(self._library, self.config, self._threads, self.geometry.dtype)
        embedding = self._embedding[:0].float()  # it is only asked for its type
        head = linear(self._head)
        return Llama(self.config, embedding, layers, self._norm, head, self._frequencies, kernel)

    def _final(self, x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, self._norm.shape, self._norm, self.config.eps)

    def _logits(self, x: Tensor) -> Tensor:
        y = torch.empty(len(x), self.config.vocab)
        self._library.llmos_linear(
            ctypes.byref(self._shape),
            ctypes.byref(self._head.c),
            ctypes.byref(self._space.rows_only(x)),
            self._norm.data_ptr(),
            self.config.hidden,
            y.data_ptr(),
            self.config.vocab,
        )
        return y
