"""Whole heads and channels out of a network, whose layers become smaller.

What goes is what has the smallest norm, of every layer as many, so that one number in config.json
still says how large all are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from llmos.lib.errors import FailedPrecondition
from llmos.servers.optimizer.job.models.torch_folder import Module, Plain, attentions


def shrink(module: Module, heads: float, channels: float) -> dict[str, Any]:
    """Take the shares of heads and channels out, in place; return the changes of config.json.

    Raises FailedPrecondition NOT_PRUNABLE for a network that is built in another way.
    """
    with torch.no_grad():
        if isinstance(module, Plain):
            return _plain(module, channels)
        model, config = module.model, module.model.config
        if hasattr(config, "num_key_value_heads") and hasattr(config, "rms_norm_eps"):
            return _llama(model, config, heads, channels)
        if attentions(model):
            return _bert(model, config, heads, channels)
    raise FailedPrecondition(
        "NOT_PRUNABLE",
        f"{type(module.model).__name__} has no heads and channels that are known here; prune it "
        "by the method MAGNITUDE or TWO_OF_FOUR.",
    )


def _keep(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Return the indices to keep, in order: at least one."""
    count = max(1, len(scores) - int(share * len(scores)))
    return scores.topk(count).indices.sort().values


def _rows(layer: Any, keep: torch.Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[keep].contiguous())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[keep].contiguous())
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = len(keep)
    else:
        layer.out_features = len(keep)


def _columns(layer: Any, keep: torch.Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[:, keep].contiguous())
    if isinstance(layer, nn.Conv2d):
        layer.in_channels = len(keep)
    else:
        layer.in_features = len(keep)


def _spread(keep: torch.Tensor, size: int) -> torch.Tensor:
    """Return the rows of blocks of `size`."""
    return (keep[:, None] * size + torch.arange(size)).flatten()


def _norms(weight: torch.Tensor, blocks: int) -> torch.Tensor:
    return weight.reshape(blocks, -1).square().sum(1)


def _llama(model: Any, config: Any, heads: float, channels: float) -> dict[str, Any]:
    groups = config.num_key_value_heads
    each = config.num_attention_heads // groups
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept, wide = groups, config.intermediate_size
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        scores = _norms(attention.o_proj.weight.T, groups) * _norms(attention.v_proj.weight, groups)
        keep = _keep(scores, heads)
        kept = len(keep)
        for name in ("k_proj", "v_proj"):
            _rows(getattr(attention, name), _spread(keep, head))
        _rows(attention.q_proj, _spread(keep, head * each))
        _columns(attention.o_proj, _spread(keep, head * each))
        scores = _norms(mlp.down_proj.weight.T, wide) * (
            _norms(mlp.up_proj.weight, wide) * _norms(mlp.gate_proj.weight, wide)
        )
        keep = _keep(scores, channels)
        for name in ("gate_proj", "up_proj"):
            _rows(getattr(mlp, name), keep)
        _columns(mlp.down_proj, keep)
    return {
        "num_key_value_heads": kept,
        "num_attention_heads": kept * each,
        "head_dim": head,
        "intermediate_size": model.model.layers[0].mlp.up_proj.out_features,
    }


def _bert(model: Any, config: Any, heads: float, channels: float) -> dict[str, Any]:
    pruned = dict(getattr(config, "pruned_heads", None) or {})
    for index, block in enumerate(attentions(model)):
        core: Any = getattr(block, "self")  # noqa: B009  it is called so
        out: Any = block.output
        size, count = core.attention_head_size, core.num_attention_heads
        scores = _norms(out.dense.weight.T, count) * _norms(core.value.weight, count)
        keep = _keep(scores, heads)
        for name in ("query", "key", "value"):
            _rows(getattr(core, name), _spread(keep, size))
        _columns(out.dense, _spread(keep, size))
        core.num_attention_heads, core.all_head_size = len(keep), len(keep) * size
        pruned[index] = config.num_attention_heads - len(keep)
    wide = config.intermediate_size
    layers = [
        part
        for part in model.modules()
        if hasattr(part, "intermediate") and hasattr(part, "output")
    ]
    for layer in layers:
        inner, outer = layer.intermediate.dense, layer.output.dense
        keep = _keep(_norms(inner.weight, wide) * _norms(outer.weight.T, wide), channels)
        _rows(inner, keep)
        _columns(outer, keep)
        wide_now = len(keep)
    return {
        "intermediate_size": wide_now if layers else wide,
        "pruned_heads": {str(i): n for i, n in pruned.items() if n},
    }


def _plain(module: Plain, channels: float) -> dict[str, Any]:
    """Shrink every layer but the last of a sequence of convolutions and linear layers."""
    sequence: Any = module.model
    layers = [part for part in sequence if isinstance(part, nn.Linear | nn.Conv2d)]
    for layer, following in pairwise(layers):
        count = layer.weight.shape[0]
        fan = following.weight.flatten(1).shape[1] // count  # inputs for each of our outputs
        used = following.weight.transpose(0, 1).reshape(count, -1)
        keep = _keep(_norms(layer.weight, count) * _norms(used, count), channels)
        _rows(layer, keep)
        flat = isinstance(following, nn.Linear) and isinstance(layer, nn.Conv2d)
        _columns(following, _spread(keep, fan) if flat else keep)
    convolutions = [part.out_channels for part in layers if isinstance(part, nn.Conv2d)]
    linear = [part.out_features for part in layers if isinstance(part, nn.Linear)][:-1]
    if convolutions:
        return {"channels": convolutions, "hidden": linear[0]}
    return {"hidden_sizes": linear}
