"""Whether a process that has imported torch may be forked."""

from __future__ import annotations

from pathlib import Path

_DEVICE = Path("/dev/nvidiactl")


def forks() -> bool:
    """Say so: not with a GPU, which a library may open when imported; no fork can use it then."""
    return not _DEVICE.exists()
