"""torchao's ways: int8 or 4-bit weights of linear layers, kept as a torch.export program."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.servers.optimizer.job.against import Against
from llmos.servers.optimizer.job.compress import exporters
from llmos.servers.optimizer.job.models import networks
from llmos.servers.optimizer.job.models.subject import Network, Subject
from llmos.servers.optimizer.job.models.torch_folder import Module

GROUP = 32


class TorchaoQuantiser:
    """Layers are the linear ones of a safetensors model."""

    file = "model.pt2"

    def __init__(
        self, method: pb.QuantiseMethod.ValueType, subject: Subject, against: Against
    ) -> None:
        """Load the source."""
        self._four = method == pb.QUANTISE_METHOD_TORCHAO_INT4
        self._subject, self._against = subject, against
        self._module: Module = networks.module(subject)

    def layers(self) -> list[str]:
        """Return the names of the linear layers."""
        return [
            name
            for name, part in self._module.named_modules()
            if isinstance(part, nn.Linear) and not (self._four and part.in_features % GROUP)
        ]

    def write(self, layers: Collection[str], target: Path) -> dict[str, Path]:
        """Write model.pt2."""
        path = target / self.file
        if not path.exists():
            target.mkdir(parents=True, exist_ok=True)
            from torchao.utils import unwrap_tensor_subclass

            changed = copy.deepcopy(self._module)
            self._quantise(changed, layers)
            unwrap_tensor_subclass(changed)
            exporters.exported(changed, self._module, self._against.batches()[-1], path)
        return {self.file: path}

    def _quantise(self, module: Module, layers: Collection[str]) -> None:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerGroup

        config: Any = Int8WeightOnlyConfig()
        if self._four:
            four: Any = torch.int4  # type: ignore[attr-defined]  # newer than its stubs
            config = IntxWeightOnlyConfig(weight_dtype=four, granularity=PerGroup(GROUP))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_(module, config, filter_fn=lambda part, name: name in layers)

    def network(self, target: Path, threads: int) -> Network:
        """Load model.pt2."""
        return networks.from_file(target / self.file, threads, self._subject)

    def trial(self, layer: str, scratch: Path) -> Network:
        """Return a copy that shares all weights but the layer's."""
        kept = dict(self._module.named_parameters())
        memo: dict[int, Any] = {
            id(p): p for name, p in kept.items() if not name.startswith(layer + ".")
        }
        changed: Module = copy.deepcopy(self._module, memo)
        self._quantise(changed, [layer])
        return networks.TorchNetwork(changed, 1)
