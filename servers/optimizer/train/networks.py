"""Networks of numbers and images, made from a spec or from the config.json that was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

MODEL_TYPE = "llmos"  # in config.json: a network of this module


class Flat(nn.Module):
    """Inputs in a row, as float32; bytes become 0 to 1."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Take (batch, ...), give (batch, features)."""
        return floats(inputs).flatten(1)


class Image(nn.Module):
    """Images as (batch, channels, height, width), float32; bytes become 0 to 1."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Take (batch, height, width) or (batch, height, width, channels)."""
        images = floats(inputs)
        return images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)


def floats(inputs: torch.Tensor) -> torch.Tensor:
    """Return float32; bytes are divided by 255."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()


def build(config: Mapping[str, Any]) -> nn.Sequential:
    """Return the network that a config describes, with fresh weights.

    Output: (batch, classes) scores, or (batch, 1) of a regression.
    """
    shape, out = list(config["input_shape"]), int(config["outputs"])
    dropout = float(config.get("dropout", 0))
    layers: list[nn.Module]
    if config["network"] == "cnn":
        layers = _cnn(shape, out, config["channels"], int(config["hidden"]), dropout)
    else:
        layers = [Flat()]
        size = 1
        for dim in shape:
            size *= dim
        for width in config.get("hidden_sizes", []):
            layers += [nn.Linear(size, width), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
            size = width
        layers.append(nn.Linear(size, out))
    return nn.Sequential(*layers)


def _cnn(
    shape: Sequence[int], out: int, channels: Sequence[int], hidden: int, dropout: float
) -> list[nn.Module]:
    layers: list[nn.Module] = [Image()]
    given = shape[2] if len(shape) == 3 else 1
    height, width = shape[0], shape[1]
    for wide in channels:
        layers += [nn.Conv2d(given, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        given, height, width = wide, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(given * height * width, hidden), nn.ReLU()]
    layers += [nn.Dropout(dropout)] if dropout else []
    return [*layers, nn.Linear(hidden, out)]
