"""A built model's weights as an image's tensors, and a model over an image."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import torch
from torch import Tensor

from llmos.servers.execution.engine.torch.config import LlamaConfig
from llmos.servers.execution.engine.torch.image import BadImage, Image, flat
from llmos.servers.execution.engine.torch.linear import Linear
from llmos.servers.execution.engine.torch.model import Layer, Llama, Model
from llmos.servers.execution.engine.torch.native.layout import PackedLinear
from llmos.servers.execution.engine.torch.native.model import PackedLayer, PackedLlama
from llmos.servers.execution.engine.torch.native.step import NativeAttention


def tensors_of(model: Model) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a model's weights by name, and the facts that `model_over` needs beside them."""
    tensors: dict[str, Tensor] = {}
    widths: dict[str, int] = {}

    def add(name: str, value: Any) -> None:
        tensors.update(flat(name, value))
        if isinstance(value, PackedLinear):
            widths[name] = value.width

    whole, layers = model.parts()
    for name, value in whole.items():
        add(name, value)
    for i, layer in enumerate(layers):
        for field in dataclasses.fields(layer):
            add(f"{i}.{field.name}", getattr(layer, field.name))
    return tensors, {"layers": len(layers), "widths": widths, "model": model.facts()}


def model_over(
    image: Image,
    config: LlamaConfig,
    device: torch.device,
    kernels: ctypes.CDLL | None,
    threads: int,
) -> Model:
    """Return the model whose weights are in an image. Raises BadImage."""
    whole, layers = weights_over(image, config, device)
    if image.facts["widths"]:
        assert kernels is not None
        return PackedLlama(kernels, config, layers=layers, threads=threads, **whole)
    native = None if kernels is None else NativeAttention(kernels, config, threads)
    facts = image.facts.get("model")  # images of former releases have none
    return Llama(config, layers=layers, attention=native, facts=facts, **whole)


def weights_over(
    image: Image, config: LlamaConfig, device: torch.device
) -> tuple[dict[str, Any], Any]:
    """Return what `Model.parts` did of the model in an image. Raises BadImage."""
    widths: dict[str, int] = image.facts["widths"]
    if image.facts["layers"] != config.layers:
        raise BadImage(f"it has {image.facts['layers']} layers")

    def part(name: str) -> Any:
        if name in image.names():
            return image.tensor(name).to(device)
        parts = image.under(f"{name}.")
        if name in widths:
            return PackedLinear.of(widths[name], parts)
        if not parts:
            return None
        moved = {k: t if t.is_mkldnn else t.to(device) for k, t in parts.items()}
        return Linear.of(moved)

    whole = {name: part(name) for name in ("embedding", "norm", "head", "frequencies")}
    kind = PackedLayer if widths else Layer
    names = [field.name for field in dataclasses.fields(kind)]
    return whole, [kind(**{n: part(f"{i}.{n}") for n in names}) for i in range(config.layers)]
