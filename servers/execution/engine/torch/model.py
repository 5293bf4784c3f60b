"""The llama architecture: RMSNorm, rotary positions, grouped attention, SwiGLU. Owns the weights.

Queries and keys are kept with rotated pairs as neighbours (GGUF's order), so that a rotation is
one complex product; rows that come in halves (Hugging Face, qwen2) are reordered when loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.servers.execution.engine.torch.attention import StepAttention
from llmos.servers.execution.engine.torch.config import LlamaConfig
from llmos.servers.execution.engine.torch.kv import Geometry, Span
from llmos.servers.execution.engine.torch.linear import PROBE_ROWS, Linear, invariant_rows


@dataclass(frozen=True)
class Layer:
    """One transformer layer; qkv and gate/up are stacked by rows into one matrix each."""

    attn_norm: Tensor
    qkv: Linear
    out: Linear
    ffn_norm: Tensor
    gate_up: Linear
    down: Linear


class Llama:
    """Computes logits for new tokens of several sequences at a time.

    On the CPU every kernel used here treats each row by itself once there are enough of them. How
    many is probed at load, and steps are padded up to that; then logits are a function of the
    sequence alone, bit by bit, whatever runs beside it and however its prefill was cut. Where no
    such number is found (`exact` is False: CUDA, whose GEMMs are chosen by the number of rows,
    and perhaps some CPUs) they may differ in the last bits.
    """

    def __init__(
        self,
        config: LlamaConfig,
        embedding: Tensor,
        layers: Sequence[Layer],
        norm: Tensor,
        head: Linear,
        frequencies: Tensor,
    ) -> None:
        """Take over the weights. frequencies: float32 [head_dim / 2], radians per position."""
        self.config, self._embedding, self._layers = config, embedding, layers
        self._norm, self._head, self._frequencies = norm, head, frequencies
        self.computed = 0  # layers, of all steps so far
        self.geometry = Geometry(
            layers=config.layers,
            kv_heads=config.kv_heads,
            group=config.heads // config.kv_heads,
            head_dim=config.head_dim,
            dtype=embedding.dtype,
            device=embedding.device,
        )
        linear, attention = self._probe()
        self.exact = linear is not None and attention is not None
        self._linear_rows, self._attention_rows = linear or 1, attention or 1

    def forward(
        self, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int]
    ) -> Tensor:
        """Return logits, float32 [len(wanted), vocab], of the rows `wanted`.

        `tokens` are the new tokens of all `spans` in their order; their keys and values are
        written to the spans' seats.
        """
        device, c = self._embedding.device, self.config
        count, idle = len(tokens), max(0, self._linear_rows - len(tokens))
        at = [span.start + i for span in spans for i in range(span.count)]
        ids = torch.tensor([*tokens, *[0] * idle], device=device)
        positions = torch.tensor([*at, *[0] * idle], dtype=torch.float32, device=device)
        angles = positions[:, None] * self._frequencies
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        attention = StepAttention(self.geometry, spans, self._attention_rows)
        x = self._embedding[ids]
        for i, layer in enumerate(self._layers):
            qkv = layer.qkv(self._normed(x, layer.attn_norm))
            qkv = qkv.view(len(ids), c.heads + 2 * c.kv_heads, c.head_dim)
            _rotate(qkv[:, : c.heads + c.kv_heads], turns)
            seen = attention(i, qkv[:count])
            x = x + layer.out(F.pad(seen, (0, 0, 0, idle)) if idle else seen)
            gate, up = layer.gate_up(self._normed(x, layer.ffn_norm)).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up)
            self.computed += 1
        if not wanted:  # only the middle of prompts was read
            return torch.empty(0, c.vocab, device=device)
        rows = [*wanted, *[0] * max(0, self._linear_rows - len(wanted))]
        last = self._normed(x[torch.tensor(rows, device=device)], self._norm)
        return self._head(last)[: len(wanted)].float()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.eps)

    def _probe(self) -> tuple[int | None, int | None]:
        """Return the fewest rows from which linear layers and attention work row by row."""
        g = self.geometry
        if g.device.type != "cpu":
            return None, None
        noise = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=noise).to(g.dtype)

        linear = invariant_rows(self._layers[0].qkv, random(PROBE_ROWS, self.config.hidden))
        keys = random(g.kv_heads, 192, g.head_dim)
        scores = random(g.kv_heads, PROBE_ROWS, 192)
        queries = random(g.kv_heads, PROBE_ROWS, g.head_dim)
        products = (
            invariant_rows(lambda q: torch.bmm(q, keys.transpose(1, 2)), queries),
            invariant_rows(lambda p: torch.bmm(torch.softmax(p, -1), keys), scores),
        )
        return linear, None if None in products else max(p or 1 for p in products)


def _rotate(heads: Tensor, turns: Tensor) -> None:
    """Rotate neighbouring pairs of `heads` [rows, heads, head_dim] in place."""
    pairs = heads.view(*heads.shape[:-1], -1, 2)
    if heads.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(turns)
    else:
        turned = torch.view_as_complex(pairs.float().contiguous()) * turns
        pairs.copy_(torch.view_as_real(turned))
