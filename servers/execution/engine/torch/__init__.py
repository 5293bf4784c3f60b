"""The torch engine. Importing this imports neither torch nor NumPy: the manager does so."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos.servers.execution.engine.base import ModelSpec
    from llmos.servers.execution.engine.torch.engine import TorchEngine

__all__ = ["check", "estimate_bytes", "load", "remember"]


def check(spec: ModelSpec) -> None:
    """Raise FailedPrecondition NO_ENGINE when the architecture or precision is not one of ours.

    Raises Unavailable LOAD_FAILED when its header cannot be read.
    """
    from llmos.servers.execution.engine.torch import sizing
    from llmos.servers.execution.engine.torch.config import read_config
    from llmos.servers.execution.engine.torch.options import wishes

    read_config(spec)
    if spec.draft is not None:
        read_config(spec.draft)
    sizing.resolve(wishes(spec).precision, spec.device)


def estimate_bytes(spec: ModelSpec) -> int:
    """Return the memory it will take on its device, bytes: weights, a full KV cache, workspace."""
    from llmos.servers.execution.engine.torch import sizing
    from llmos.servers.execution.engine.torch.config import read_config
    from llmos.servers.execution.engine.torch.options import wishes

    config, _ = read_config(spec)
    precision = sizing.resolve(wishes(spec).precision, spec.device)
    context = sizing.context_of(spec, config)
    needed = sizing.model_bytes(config, context, precision)
    if spec.draft is not None:  # in the same precision, and with a cache of as many positions
        draft, _ = read_config(spec.draft)
        needed += sizing.model_bytes(draft, context, precision)
    return needed


def remember(spec: ModelSpec) -> None:
    """Read now what all workers of these files share with the process that forks them.

    Raises as `load`.
    """
    from llmos.servers.execution.engine.torch.reading import remember as read_and_keep

    read_and_keep(spec)


def load(spec: ModelSpec, precision: str = "") -> TorchEngine:
    """Load a model; blocks. precision: `fp32`, `bf16`, `int8` or `int4`, instead of
    what the spec says.

    Raises FailedPrecondition NO_ENGINE, Unavailable LOAD_FAILED.
    """
    from llmos.servers.execution.engine.torch.engine import load as load_engine

    return load_engine(spec, precision)
