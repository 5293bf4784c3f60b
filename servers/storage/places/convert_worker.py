"""The throw-away process that reads a pickle: bounded, without network, gone afterwards.

`python -I -m llmos.servers.storage.places.convert_worker TARGET MEMORY SECONDS FD...` reads
checkpoints from open files and writes their tensors to TARGET as safetensors. Exits 1 with the
reason as the last line on stderr.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000  # unshare(2)
_NO_NEW_PRIVS, _DEATH_SIGNAL = 38, 1  # prctl(2)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params")


def main() -> None:
    """Run the process."""
    target, memory, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _confine(memory, seconds)
    try:
        tensors = _read([int(number) for number in sys.argv[4:]])
        from safetensors.torch import save_file

        save_file(tensors, target, metadata={"format": "pt"})
    except MemoryError:
        sys.exit("it needs more memory than a conversion gets")
    except Exception as exc:  # outermost: whatever a hostile file provokes is said in a line
        said = str(exc).strip().splitlines() or [""]
        sys.exit(f"{type(exc).__name__}: {said[0][:200]}")


def _confine(memory: int, seconds: int) -> None:
    """Take rights away: memory and time (bytes, seconds), new files, privileges, network."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Where the kernel allows it. Elsewhere the process keeps the network; weights_only and the
    # other limits hold all the same.
    libc.unshare(_NEW_USER | _NEW_NET)
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        hard = resource.getrlimit(limit)[1]
        wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (wanted, wanted))


def _read(numbers: list[int]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    tensors: dict[str, Any] = {}
    for number in numbers:
        with os.fdopen(number, "rb") as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        _collect(_unwrapped(loaded), "", tensors, torch.Tensor)
    if not tensors:
        raise ValueError("it holds no tensors")
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ValueError(f"{name} is a sparse or quantised tensor")
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        # safetensors takes no tensors that share memory; tied weights become two.
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    return tensors


def _unwrapped(loaded: Any) -> Any:
    """Return the weights of a training checkpoint, leaving out optimiser and the like."""
    if isinstance(loaded, Mapping):
        for key in _WRAPPERS:
            inner = loaded.get(key)
            if isinstance(inner, Mapping) and inner:
                return inner
    return loaded


def _collect(value: Any, prefix: str, found: dict[str, Any], kind: type) -> None:
    """Gather tensors under dotted names; of other values none is kept."""
    if isinstance(value, kind):
        name = prefix or "tensor"
        if name in found:
            raise ValueError(f"two tensors are called {name}")
        found[name] = value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _collect(inner, f"{prefix}.{key}" if prefix else str(key), found, kind)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            _collect(inner, f"{prefix}.{number}" if prefix else str(number), found, kind)


if __name__ == "__main__":
    main()
