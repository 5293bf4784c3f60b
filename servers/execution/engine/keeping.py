"""What engines keep in the state directory of weights as they compute with them, for all workers.

Owns the folder's size and what is left half written there; engines own what their entries mean.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from llmos.servers.execution.engine.base import ModelSpec

_SHARE = 4  # entries take at most a quarter of the free space of their disk, and are kept below it


def folder_of(state_dir: str) -> Path:
    """Return where entries are kept: files and folders; a name with a dot is being written."""
    return Path(state_dir) / "execution" / "weights"


def identity(spec: ModelSpec, name: str) -> tuple[str, ...]:
    """Return what tells a file from all others.

    Its digest where storage has said it: the times of storage's copies say when they were used.
    """
    if digest := spec.digests.get(name):
        return name, digest
    path, about = spec.files[name].resolve(), spec.files[name].stat()
    return name, str(path), str(about.st_size), str(about.st_mtime_ns)


def cpu() -> str:
    """Return what libraries choose layouts and kernels by."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    seen = {line for line in lines if line.startswith(("flags", "model name", "cache size"))}
    return "\n".join(sorted(seen))


def make_room(folder: Path, size: int) -> bool:
    """Remove what was used longest ago, until `size` more bytes are within our share.

    Who maps what is removed still has it. Returns False when there cannot be so much room.
    """
    kept = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another worker was quicker
            if not path.name.startswith("."):
                kept.append((path.stat().st_mtime, _size(path), path))
            elif not _alive(path.name):
                remove(path)  # half written by a worker that died
    used = sum(entry[1] for entry in kept)
    most = (shutil.disk_usage(folder).free + used) // _SHARE
    for _, bytes_, path in sorted(kept):
        if used + size <= most:
            break
        remove(path)
        used -= bytes_
    return used + size <= most


def remove(path: Path) -> None:
    """Remove an entry, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # another worker may remove it, too
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir())
    return path.stat().st_size


def _alive(name: str) -> bool:
    """Return whether the process that writes the entry `.PID-...` runs."""
    pid = name[1:].partition("-")[0]
    return pid.isdigit() and Path(f"/proc/{pid}").exists()
