"""What has been read of versions, kept by the zygote: the workers that it forks have it at birth.

A tokenizer takes longer to build than all else in a load whose weights are mapped, and some 20 MB,
which workers share with the zygote. Imports neither torch nor tokenizers.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from llmos.servers.execution.engine.base import ModelSpec

if TYPE_CHECKING:
    from llmos.servers.execution.engine.torch.reading import Reading

_ROOM = 4  # versions; those used longest ago go first

_known: OrderedDict[tuple[str, ...], Reading] = OrderedDict()


def keep(spec: ModelSpec, reading: Reading) -> None:
    """Have it at hand for all versions of the same files, if storage has said what is in them."""
    if key := _key(spec):
        _known[key] = reading
        _known.move_to_end(key)
        while len(_known) > _ROOM:
            _known.popitem(last=False)


def recall(spec: ModelSpec) -> Reading | None:
    """Return what is known of a version."""
    return _known.get(_key(spec))


def touch(spec: ModelSpec) -> bool:
    """Return whether it is known; it counts as used now."""
    if (key := _key(spec)) in _known:
        _known.move_to_end(key)
        return True
    return False


def _key(spec: ModelSpec) -> tuple[str, ...]:
    """Return what tells a version's contents from all others; empty when nobody has said."""
    if not spec.files or not all(spec.digests.get(name) for name in spec.files):
        return ()
    return spec.format, *(f"{name}={spec.digests[name]}" for name in sorted(spec.files))
