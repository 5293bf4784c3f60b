"""GGUF's ways: weights in blocks of 32, each with a scale; by the gguf package."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from torch import nn

from llmos.servers.optimizer.job.against import Against
from llmos.servers.optimizer.job.compress import gguf_file
from llmos.servers.optimizer.job.models import gguf_model, networks
from llmos.servers.optimizer.job.models.subject import Network, Subject
from llmos.servers.optimizer.job.models.torch_folder import Module

_BLOCK = 32


class GgufQuantiser:
    """Layers are the linear ones and the embedding of a causal language model, by torch's names."""

    file = "model.gguf"

    def __init__(self, kind: str, subject: Subject, against: Against) -> None:
        """kind: of GGMLQuantizationType, e.g. Q8_0. Loads the source."""
        self._kind = GGMLQuantizationType[kind]
        self._subject = subject
        self._module: Module = networks.module(subject)

    def layers(self) -> list[str]:
        """Return the names of the layers whose rows divide into blocks."""
        return [
            name.removeprefix("model.")
            for name, part in self._module.named_modules()
            if isinstance(part, nn.Linear | nn.Embedding)
            and part.weight.shape[-1] % _BLOCK == 0
            and not (name == "model.lm_head" and self._tied)
        ]

    @property
    def _tied(self) -> bool:
        return bool(getattr(self._module.model.config, "tie_word_embeddings", False))

    def write(self, layers: Collection[str], target: Path) -> dict[str, Path]:
        """Write model.gguf; other layers stay as the source has them."""
        path = target / self.file
        if not path.exists():
            target.mkdir(parents=True, exist_ok=True)
            temporary = target / "model.tmp"
            if self._subject.format == "gguf":
                gguf_file.requantise(self._subject.main, temporary, self._kind, layers)
            else:
                gguf_file.convert(self._module, self._subject, temporary, self._kind, layers)
            temporary.replace(path)
        return {self.file: path}

    def network(self, target: Path, threads: int) -> Network:
        """Load model.gguf, unpacked."""
        return networks.TorchNetwork(gguf_model.load(target / self.file), threads)

    def trial(self, layer: str, scratch: Path) -> Network:
        """Return a copy that shares all weights but the layer's, which were packed and unpacked."""
        shared: dict[int, Any] = {id(p): p for p in self._module.parameters()}
        changed: Module = copy.deepcopy(self._module, shared)
        part: Any = changed.get_submodule("model." + layer)
        values = part.weight.detach().numpy()
        packed = quants.quantize(np.ascontiguousarray(values), self._kind)
        rounded = nn.Parameter(torch.from_numpy(quants.dequantize(packed, self._kind)))
        part.weight = rounded
        if self._tied and isinstance(part, nn.Embedding):
            changed.model.lm_head.weight = rounded
        return networks.TorchNetwork(changed, 1)
