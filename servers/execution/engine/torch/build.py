"""Builds a Llama from a model file: reads ahead in threads while the weights are repacked."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch.config import LlamaConfig, RopeScaling
from llmos.servers.execution.engine.torch.image import BadImage
from llmos.servers.execution.engine.torch.linear import Linear
from llmos.servers.execution.engine.torch.model import Layer, Llama, Model
from llmos.servers.execution.engine.torch.native.build import library
from llmos.servers.execution.engine.torch.native.layout import PackedLinear, declare
from llmos.servers.execution.engine.torch.native.model import PackedLayer, PackedLlama
from llmos.servers.execution.engine.torch.native.selftest import works
from llmos.servers.execution.engine.torch.native.step import NativeAttention, suits
from llmos.servers.execution.engine.torch.packed import model_over, tensors_of, weights_over
from llmos.servers.execution.engine.torch.shelf import Shelf
from llmos.servers.execution.engine.torch.weights import Float32, Weights

_BITS = {"int8": 8, "int4": 4}  # of weights
_KEEPING = 10  # how nice the thread is that writes images

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Raw:
    """One layer's arrays as read."""

    attn_norm: Float32
    qkv: Float32
    qkv_bias: Float32 | None
    out: Float32
    ffn_norm: Float32
    gate_up: Float32
    down: Float32
    q_norm: Float32 | None
    k_norm: Float32 | None


def build(
    config: LlamaConfig,
    weights: Weights,
    device: torch.device,
    precision: str,
    threads: int,
    spec: ModelSpec | None = None,
) -> Model:
    """Read, check and repack all weights. precision: `float32`, `bfloat16`, `int8` or `int4`.

    spec: where they come from, if what is repacked is to be shared by all workers of the version
    (see `image`). Raises Unavailable LOAD_FAILED when a tensor is missing, misshapen or not finite.
    """
    kernels = library() if device.type == "cpu" and suits(config) else None
    if kernels is not None:
        declare(kernels)
        if not works(kernels):
            log.error("the compiled kernels compute wrongly on this CPU; going on without them")
            kernels = None
    weights.kernels = kernels
    packing = _Packing(config, weights, device, threads)

    def make() -> Model:
        bits = _BITS.get(precision, 0)
        if not bits:
            return packing.plain(getattr(torch, precision), kernels)
        if kernels is not None:
            return packing.packed(kernels, bits)
        log.warning("%s without compiled kernels: it is computed with in float32", precision)
        return packing.plain(torch.float32, None, rounded=bits)

    if spec is None or not spec.state_dir:
        return make()
    return _shared(make, Shelf(spec.state_dir), spec, config, device, precision, kernels, threads)


def _shared(
    make: Callable[[], Model],
    shelf: Shelf,
    spec: ModelSpec,
    config: LlamaConfig,
    device: torch.device,
    precision: str,
    kernels: ctypes.CDLL | None,
    threads: int,
) -> Model:
    """Return the model over its image, or the model that is made now, and will be over one soon."""
    key = shelf.key(spec, precision, compiled=kernels is not None, device=device.type)
    if (image := shelf.find(key)) is not None:
        try:
            return model_over(image, config, device, kernels, threads)
        except BadImage as error:
            shelf.drop(key, str(error))
    model = make()
    keeper = threading.Thread(target=_keep, args=(shelf, key, model), name="keep", daemon=True)
    keeper.start()
    return model


def _keep(shelf: Shelf, key: str, model: Model) -> None:
    """Write a model's image, and go on over it; beside the model's first answers, after them."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _KEEPING)
    with torch.inference_mode():
        image = shelf.keep(key, *tensors_of(model))
        if image is None or model.geometry.device.type != "cpu":
            return
        try:
            model.adopt(*weights_over(image, model.config, model.geometry.device))
        except BadImage as error:
            shelf.drop(key, str(error))


class _Packing:
    """Turns a file's arrays into one of the models."""

    def __init__(
        self, config: LlamaConfig, weights: Weights, device: torch.device, threads: int
    ) -> None:
        self._config, self._weights, self._device = config, weights, device
        self._threads = threads

    def plain(self, dtype: torch.dtype, kernels: ctypes.CDLL | None, *, rounded: int = 0) -> Model:
        """Return torch's; `rounded`: its matrices are those of so many bits, 0 = as they are."""
        config = self._config

        def place(array: Float32) -> Tensor:
            return torch.from_numpy(array).to(device=self._device, dtype=dtype)

        def linear(array: Float32, bias: Float32 | None = None, bits: int = rounded) -> Linear:
            weight = place(array)
            if bits:
                whole = PackedLinear(weight.float(), bits=bits).dequantised()
                weight = whole[: weight.shape[0], : weight.shape[1]].contiguous().to(weight)
            return Linear(weight, None if bias is None else place(bias))

        layers: list[Layer] = []
        with ThreadPoolExecutor(self._threads, "read-weights") as pool:
            head = pool.submit(_read_head, config, self._weights)
            for raw in self._read(pool):
                layers.append(
                    Layer(
                        attn_norm=place(raw.attn_norm),
                        qkv=linear(raw.qkv, raw.qkv_bias),
                        out=linear(raw.out),
                        ffn_norm=place(raw.ffn_norm),
                        gate_up=linear(raw.gate_up),
                        down=linear(raw.down),
                        q_norm=None if raw.q_norm is None else place(raw.q_norm),
                        k_norm=None if raw.k_norm is None else place(raw.k_norm),
                    )
                )
            embedding, output = head.result()
        native = None if kernels is None else NativeAttention(kernels, config, self._threads)
        return Llama(
            config,
            place(embedding),
            layers,
            place(self._norm()),
            linear(output, bits=min(8, 2 * rounded)),
            _frequencies(config, self._weights).to(self._device),
            native,
        )

    def packed(self, kernels: ctypes.CDLL, bits: int) -> Model:
        """Return the kernel's, its layers' matrices of so many bits, the output matrix of 8."""
        config = self._config

        def vector(array: Float32 | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(array)

        def linear(array: Float32, bias: Float32 | None = None, bits: int = bits) -> PackedLinear:
            return PackedLinear(torch.from_numpy(array), vector(bias), kernels, self._threads, bits)

        layers: list[PackedLayer] = []
        with ThreadPoolExecutor(self._threads, "read-weights") as pool:
            head = pool.submit(_read_head, config, self._weights)
            for raw in self._read(pool):
                layers.append(
                    PackedLayer(
                        attn_norm=torch.from_numpy(raw.attn_norm),
                        ffn_norm=torch.from_numpy(raw.ffn_norm),
                        q_norm=vector(raw.q_norm),
                        k_norm=vector(raw.k_norm),
                        qkv=linear(raw.qkv, raw.qkv_bias),
                        out=linear(raw.out),
                        gate_up=linear(raw.gate_up),
                        down=linear(raw.down),
                    )
                )
            embedding, output = head.result()
        return PackedLlama(
            kernels,
            config,
            torch.from_numpy(embedding).half(),
            layers,
            torch.from_numpy(self._norm()),
            linear(output, bits=8),
            _frequencies(config, self._weights),
            self._threads,
        )

    def _norm(self) -> Float32:
        return self._weights.read(["output_norm.weight"], [self._config.hidden])

    def _read(self, pool: ThreadPoolExecutor) -> Iterator[_Raw]:
        """Yield the layers in order, read ahead."""
        count = self._config.layers
        queue: list[Future[_Raw]] = []
        for i in range(count):
            # A few layers ahead, not all: what was read and not yet packed is held twice.
            while len(queue) < min(i + self._threads + 1, count):
                queue.append(pool.submit(_read_layer, self._config, self._weights, len(queue)))
            raw = queue[i].result()
            queue[i] = Future()
            yield raw


def _read_head(c: LlamaConfig, weights: Weights) -> tuple[Float32, Float32]:
    embedding = weights.read(["token_embd.weight"], [c.vocab], c.hidden)
    if c.tied:
        return embedding, embedding
    return embedding, weights.read(["output.weight"], [c.vocab], c.hidden)


def _read_layer(c: LlamaConfig, weights: Weights, i: int) -> _Raw:
    def read(names: str, rows: list[int], *width: int, kind: str = "weight") -> Float32:
        return weights.read([f"blk.{i}.{name}.{kind}" for name in names.split()], rows, *width)

    heads, kv_heads = c.heads * c.head_dim, c.kv_heads * c.head_dim
    rows = [heads, kv_heads, kv_heads]
    return _Raw(
        attn_norm=read("attn_norm", [c.hidden]),
        qkv=_interleave(c, read("attn_q attn_k attn_v", rows, c.hidden)),
        qkv_bias=_interleave(c, read("attn_q attn_k attn_v", rows, kind="bias"))
        if c.qkv_bias
        else None,
        out=read("attn_output", [c.hidden], heads),
        ffn_norm=read("ffn_norm", [c.hidden]),
        gate_up=read("ffn_gate ffn_up", [c.ffn, c.ffn], c.hidden),
        down=read("ffn_down", [c.hidden], c.ffn),
        q_norm=_pairs(c, read("attn_q_norm", [c.head_dim])) if c.qk_norm else None,
        k_norm=_pairs(c, read("attn_k_norm", [c.head_dim])) if c.qk_norm else None,
    )


def _interleave(c: LlamaConfig, qkv: Float32) -> Float32:
    """Bring the halves of each q and k head into neighbouring pairs; v stays."""
    if c.interleaved:
        return qkv
    end = (c.heads + c.kv_heads) * c.head_dim
    halves = qkv[:end].reshape(-1, 2, c.head_dim // 2, *qkv.shape[1:])
    qkv[:end] = np.swapaxes(halves, 1, 2).reshape(end, *qkv.shape[1:])
    return qkv


def _pairs(c: LlamaConfig, norm: Float32) -> Float32:
    """Bring a head's norm into the order of its rows."""
    if c.interleaved:
        return norm
    return np.ascontiguousarray(norm.reshape(2, -1).T).reshape(-1)


def _frequencies(c: LlamaConfig, weights: Weights) -> Tensor:
    """Return radians per position of each rotated pair, float32 [head_dim / 2]."""
    powers = torch.arange(0, c.head_dim, 2, dtype=torch.int64).float() / c.head_dim
    plain = 1.0 / (c.rope_base**powers)
    if weights.has("rope_freqs.weight"):  # GGUF has llama3's rule worked out
        factors = weights.read(["rope_freqs.weight"], [c.head_dim // 2])
        return plain / torch.from_numpy(factors)
    if c.rope_scaling is None:
        return plain
    if c.rope_scaling.kind == "linear":
        return plain / c.rope_scaling.factor
    return _llama3(plain, c.rope_scaling)


def _llama3(plain: Tensor, rule: RopeScaling) -> Tensor:
    """Slow down long waves by the factor, leave short ones, and blend in between."""
    wavelength = 2 * math.pi / plain
    blend = (rule.original_context / wavelength - rule.low) / (rule.high - rule.low)
    blend = blend.clamp(0, 1)
    return (1 - blend) * plain / rule.factor + blend * plain
