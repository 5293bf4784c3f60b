"""Torch's optimisers as a plan wants them, and the seeds of steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.servers.optimizer.train.plan import Plan


def decayed(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are regularised: no biases, no norms."""
    return [p for p in network.parameters() if p.requires_grad and p.dim() > 1]


def make_optimizer(network: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Return torch's optimiser; l2 goes to the weights that `decayed` names."""
    spec = plan.spec
    weights = {id(p) for p in decayed(network)}
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in weights], "weight_decay": spec.l2},
        {"params": [p for p in trained if id(p) not in weights], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if spec.method == pb.METHOD_SGD:
        return torch.optim.SGD(groups, lr=plan.learning_rate, momentum=spec.momentum)
    kind = torch.optim.Adam if spec.method == pb.METHOD_ADAM else torch.optim.AdamW
    return kind(groups, lr=plan.learning_rate)


def mixed(*numbers: int) -> int:
    """Return a seed of 63 bits that all numbers decide."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
