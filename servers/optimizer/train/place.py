"""Where a process trains: its rank among others, its device, and how weights are shared."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

_GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_SPREAD = StateDictOptions(
    full_state_dict=True, broadcast_from_rank0=True, ignore_frozen_params=True, strict=False
)
_SET = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)


class Place:
    """One process of a job; alone, or one of those that torchrun started."""

    def __init__(self, shard: bool = False) -> None:
        """Join the others, as torchrun's environment says."""
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        enough = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.device = torch.device("cuda", local) if enough and gpus else torch.device("cpu")
        self._shard = shard and self.world > 1
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @classmethod
    def alone(cls) -> Place:
        """Return a place on the CPU that shares nothing, also while others are there."""
        place = cls.__new__(cls)
        place.rank, place.world, place._shard = 0, 1, False
        place.device = torch.device("cpu")
        return place

    @property
    def first(self) -> bool:
        """Say whether this process speaks for all."""
        return self.rank == 0

    def seed(self, seed: int) -> None:
        """Set what random numbers of torch follow from, here and on the device."""
        if (
            self.device.type == "cpu"
        ):  # torch.manual_seed asks every sort of device: 0.1 ms and more
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network to call in training; `network` keeps the weights, or their shards."""
        network.to(self.device)
        if self.world == 1:
            return network
        if not self._shard:
            ids = [self.device.index] if self.device.type == "cuda" else None
            return nn.parallel.DistributedDataParallel(network, device_ids=ids)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        for module in network.modules():  # each repeated layer is gathered alone
            if isinstance(module, nn.ModuleList):
                for layer in module:
                    fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)
        return network

    @contextmanager
    def part(self, wrapped: Any, last: bool) -> Iterator[None]:
        """Around a part of a step: gradients are summed over processes at the last only."""
        if self._shard:
            wrapped.set_requires_gradient_sync(last)
            yield
        elif self.world > 1 and not last:
            with wrapped.no_sync():
                yield
        else:
            yield

    def total(self, value: float) -> float:
        """Return the sum over all processes."""
        if self.world == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(box)
        return float(box.item())

    def gather(self, network: nn.Module, optimizer: Any = None) -> dict[str, torch.Tensor]:
        """Return all tensors that a checkpoint needs, on the CPU; empty but in the first process.

        Every process must call it.
        """
        model: dict[str, Any] = get_model_state_dict(network, options=_GATHER)
        found: dict[str, torch.Tensor] = {f"model.{k}": v for k, v in model.items()}
        if optimizer is not None and optimizer.state:
            whole: Any = get_optimizer_state_dict(network, optimizer, options=_GATHER)
            for name, state in whole.get("state", {}).items():  # all is with the first process
                for key, value in state.items():
                    found[f"optimizer.{name}|{key}"] = torch.as_tensor(value)
        return found if self.first else {}

    def scatter(
        self, tensors: dict[str, torch.Tensor], network: nn.Module, optimizer: Any = None
    ) -> None:
        """Set what `gather` returned; every process must call it, the first one with tensors."""
        options = _SPREAD if self.world > 1 else _SET
        begin = "model."
        model: dict[str, Any] = {
            k.removeprefix(begin): v for k, v in tensors.items() if k.startswith(begin)
        }
        set_model_state_dict(network, model, options=options)
        if optimizer is None:
            return
        states: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                parameter, _, key = name.removeprefix("optimizer.").rpartition("|")
                states.setdefault(parameter, {})[key] = value
        some = [bool(states)]
        if self.world > 1:
            dist.broadcast_object_list(some, src=0)
        if some[0]:
            now: Any = get_optimizer_state_dict(network, optimizer, options=_GATHER)
            groups = now.get("param_groups", [])
            whole: Any = {"state": states, "param_groups": groups} if self.first else {}
            set_optimizer_state_dict(network, optimizer, whole, options=options)

    def leave(self) -> None:
        """Part from the others."""
        if self.world > 1:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
