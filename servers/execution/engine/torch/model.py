"""The llama architecture: RMSNorm, rotary positions, grouped attention, SwiGLU. Owns the weights.

Queries and keys are kept with rotated pairs as neighbours (GGUF's order), so that a rotation is
one complex product; rows that come in halves (Hugging Face, qwen) are reordered when loaded.
"""

from __future__ import annotations

import abc
import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.servers.execution.engine.torch.adapter import Adapter
from llmos.servers.execution.engine.torch.attention import StepAttention
from llmos.servers.execution.engine.torch.config import LlamaConfig
from llmos.servers.execution.engine.torch.kv import Geometry, KVCache, Span
from llmos.servers.execution.engine.torch.linear import PROBE_ROWS, Linear, invariant_rows
from llmos.servers.execution.engine.torch.native.step import NativeAttention

Between = Callable[[], None]


class Model(abc.ABC):
    """Computes logits for new tokens of several sequences at a time.

    exact: logits are a function of the sequence alone, bit by bit, whatever runs beside it and
    however its prefill was cut. pause: any thread may set it (to 1) to have a step call its
    `between` after the layer it is at.
    """

    exact: bool
    dtype: torch.dtype = torch.float32  # of activations
    _layers: Sequence[Any]
    _norm: Tensor
    _head: Any

    def __init__(
        self, config: LlamaConfig, geometry: Geometry, embedding: Tensor, frequencies: Tensor
    ) -> None:
        """Take over the embedding. frequencies: float32 [head_dim / 2], radians per position."""
        self.config, self.geometry = config, geometry
        self._embedding, self._frequencies = embedding, frequencies
        self._least = 1  # rows that a step is padded up to
        self._computed, self.pause = ctypes.c_int64(), ctypes.c_int32()
        self._using = threading.RLock()  # the weights, for a step and those between its layers

    @property
    def computed(self) -> int:
        """Return the layers of all steps so far."""
        return self._computed.value

    def forward(
        self, cache: KVCache, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int]
    ) -> Tensor:
        """Return logits, float32 [len(wanted), vocab], of the rows `wanted`.

        `tokens` are the new tokens of all `spans` in their order; their keys and values are
        written to the cache.
        """
        return self.step(cache, tokens, spans, wanted, ())[0]

    def step(
        self,
        cache: KVCache,
        tokens: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        shown: Sequence[int],
        between: Between | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return as `forward`, and the states after the last norm of the rows `shown`, float32.

        between: called between two layers when `pause` is set, and has to clear it; it may compute
        steps of other sequences.
        """
        with self._using:
            return self._step(cache, tokens, spans, wanted, shown, between)

    def _step(
        self,
        cache: KVCache,
        tokens: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        shown: Sequence[int],
        between: Between | None,
    ) -> tuple[Tensor, Tensor]:
        x = self._run(cache, tokens, spans, between)
        states = torch.empty(0, self.config.hidden, device=x.device)
        if shown:
            states = self._final(x[torch.tensor(shown, device=x.device)]).float()
        if not wanted:  # only the middle of prompts was read
            return torch.empty(0, self.config.vocab, device=x.device), states
        rows = [*wanted, *[0] * max(0, self._least - len(wanted))]
        last = x[torch.tensor(rows, device=x.device)]
        return self._logits(last)[: len(wanted)].float(), states

    def hidden(self, cache: KVCache, tokens: Sequence[int], spans: Sequence[Span]) -> Tensor:
        """Return what the output matrix would get of every token, float32 [tokens, hidden]."""
        with self._using:
            return self._final(self._run(cache, tokens, spans))[: len(tokens)].float()

    def _run(
        self,
        cache: KVCache,
        tokens: Sequence[int],
        spans: Sequence[Span],
        between: Between | None = None,
    ) -> Tensor:
        device, idle = self._embedding.device, max(0, self._least - len(tokens))
        at = [span.start + i for span in spans for i in range(span.count)]
        ids = torch.tensor([*tokens, *[0] * idle], device=device)
        positions = torch.tensor([*at, *[0] * idle], dtype=torch.float32, device=device)
        angles = positions[:, None] * self._frequencies
        return self._body(cache, self._embedding[ids], angles, spans, between)

    def parts(self) -> tuple[dict[str, Any], Sequence[Any]]:
        """Return all weights: those of the whole by name, and the layers."""
        whole = {"embedding": self._embedding, "frequencies": self._frequencies}
        return {**whole, "norm": self._norm, "head": self._head}, self._layers

    def facts(self) -> dict[str, Any]:
        """Return what a model over the same `parts` need not find out again; fit for JSON."""
        return {}

    def adopt(self, whole: Mapping[str, Any], layers: Sequence[Any]) -> None:
        """Go on, after the step under way, over `parts` of the same numbers in other memory."""
        with self._using:
            self._embedding, self._frequencies = whole["embedding"], whole["frequencies"]
            self._norm, self._head, self._layers = whole["norm"], whole["head"], layers
            self._adopted()

    def _adopted(self) -> None:  # noqa: B027 - most have nothing to do
        """Let go of what was made of the weights before."""

    @abc.abstractmethod
    def _body(
        self,
        cache: KVCache,
        x: Tensor,
        angles: Tensor,
        spans: Sequence[Span],
        between: Between | None = None,
    ) -> Tensor:
        """Run all layers on `x` [rows, hidden], which may have idle rows after those of `spans`."""

    @abc.abstractmethod
    def _final(self, x: Tensor) -> Tensor:
        """Return the rows after the last norm."""

    @abc.abstractmethod
    def _logits(self, x: Tensor) -> Tensor:
        """Return the rows after the last norm times the output matrix; may change `x`."""


@dataclass(frozen=True)
class Layer:
    """One transformer layer; qkv and gate/up are stacked by rows into one matrix each."""

    attn_norm: Tensor
    qkv: Linear
    out: Linear
    ffn_norm: Tensor
    gate_up: Linear
    down: Linear
    q_norm: Tensor | None = None  # of each head (qwen3)
    k_norm: Tensor | None = None


class Adapted:
    """The rows of a step that adapters are added to, together for all that name the same one."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        """Find them; `spans` are the step's, in the order of its rows."""
        rows: dict[Adapter, list[int]] = {}
        at = 0
        for span in spans:
            if span.adapter is not None:
                rows.setdefault(span.adapter, []).extend(range(at, at + span.count))
            at += span.count
        self._groups = [(a, torch.tensor(r, device=device)) for a, r in rows.items()]

    def add(self, layer: int, stack: str, x: Tensor, y: Tensor) -> Tensor:
        """Return `y`, the product of `x` with a stack of a layer, with the adapters' added."""
        for adapter, rows in self._groups:
            delta = adapter.delta(layer, stack, x[rows])
            if delta is not None:
                y[rows] += delta
        return y


class Llama(Model):
    """The model in torch's operators, in float32 or bfloat16, on any device.

    On the CPU every kernel used here treats each row by itself once there are enough of them. How
    many is probed at load, and steps are padded up to that. Where no such number is found (`exact`
    is False: CUDA, whose GEMMs are chosen by the number of rows, and perhaps some CPUs) logits may
    differ in the last bits with the batch.
    """

    def __init__(
        self,
        config: LlamaConfig,
        embedding: Tensor,
        layers: Sequence[Layer],
        norm: Tensor,
        head: Linear,
        frequencies: Tensor,
        attention: NativeAttention | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Take over the weights. attention: the compiled kernel, where there is one.

        facts: those of a model of the same weights, which saves the probes that take longer and
        leave more memory behind than all else where weights are mapped.
        """
        geometry = Geometry(
            layers=config.layers,
            kv_heads=config.kv_heads,
            group=config.heads // config.kv_heads,
            head_dim=config.head_dim,
            dtype=torch.float32 if attention else embedding.dtype,
            device=embedding.device,
        )
        super().__init__(config, geometry, embedding, frequencies)
        self.dtype = embedding.dtype
        self._layers, self._norm, self._head, self._native = layers, norm, head, attention
        known, threads = facts or {}, torch.get_num_threads()
        same = known.get("threads") == threads
        linear = known["linear_rows"] if same else self._probe_linear()
        self._facts = {"threads": threads, "linear_rows": linear}
        rows = 1 if attention else self._probe_attention()  # the kernel takes each row by itself
        self.exact = linear is not None and rows is not None
        self._least, self._attention_rows = linear or 1, rows or 1

    def facts(self) -> dict[str, Any]:
        """See Model."""
        return self._facts

    def _body(
        self,
        cache: KVCache,
        x: Tensor,
        angles: Tensor,
        spans: Sequence[Span],
        between: Between | None = None,
    ) -> Tensor:
        c, rows = self.config, len(x)
        count = sum(span.count for span in spans)
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        attention: StepAttention | NativeAttention
        if self._native is None:
            attention = StepAttention(cache, spans, self._attention_rows)
        else:
            attention = self._native
            attention.plan(cache, spans, angles[:count])
        adapted = Adapted(spans, x.device)
        for i, layer in enumerate(self._layers):
            normed = self._normed(x, layer.attn_norm)
            qkv = adapted.add(i, "qkv", normed, layer.qkv(normed))
            qkv = qkv.view(rows, c.heads + 2 * c.kv_heads, c.head_dim)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = qkv[:, : c.heads], qkv[:, c.heads : c.heads + c.kv_heads]
                q.copy_(self._normed(q, layer.q_norm))
                k.copy_(self._normed(k, layer.k_norm))
            if self._native is None:
                _rotate(qkv[:, : c.heads + c.kv_heads], turns)
            seen = attention(i, qkv[:count])
            seen = F.pad(seen, (0, 0, 0, rows - count)) if rows > count else seen
            x = x + adapted.add(i, "out", seen, layer.out(seen))
            normed = self._normed(x, layer.ffn_norm)
            gate, up = adapted.add(i, "gate_up", normed, layer.gate_up(normed)).chunk(2, -1)
            mixed = F.silu(gate) * up
            x = x + adapted.add(i, "down", mixed, layer.down(mixed))
            self._computed.value += 1
            if between is not None and self.pause.value:
                between()
                if self._native is not None:  # which may have planned other steps in its space
                    self._native.plan(cache, spans, angles[:count])
        return x

    def _final(self, x: Tensor) -> Tensor:
        return self._normed(x, self._norm)

    def _logits(self, x: Tensor) -> Tensor:
        y: Tensor = self._head(self._final(x))
        return y

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.eps)

    def _probe_linear(self) -> int | None:
        """Return the fewest rows from which linear layers work row by row."""
        if self.geometry.device.type != "cpu":
            return None
        rows = _noise(PROBE_ROWS, self.config.hidden, dtype=self._embedding.dtype)
        return invariant_rows(self._layers[0].qkv, rows)

    def _probe_attention(self) -> int | None:
        """Return the fewest rows from which torch's attention works row by row."""
        g = self.geometry
        if g.device.type != "cpu":
            return None
        keys = _noise(g.kv_heads, g.head_dim, 192, dtype=g.dtype)
        values = _noise(g.kv_heads, 192, g.head_dim, dtype=g.dtype)
        scores = _noise(g.kv_heads, PROBE_ROWS, 192, dtype=g.dtype)
        queries = _noise(g.kv_heads, PROBE_ROWS, g.head_dim, dtype=g.dtype)
        products = (
            invariant_rows(lambda q: torch.bmm(q, keys), queries),
            invariant_rows(lambda p: torch.bmm(torch.softmax(p, -1), values), scores),
        )
        return None if None in products else max(p or 1 for p in products)


def _noise(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _rotate(heads: Tensor, turns: Tensor) -> None:
    """Rotate neighbouring pairs of `heads` [rows, heads, head_dim] in place."""
    pairs = heads.view(*heads.shape[:-1], -1, 2)
    if heads.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(turns)
    else:
        turned = torch.view_as_complex(pairs.float().contiguous()) * turns
        pairs.copy_(torch.view_as_real(turned))
