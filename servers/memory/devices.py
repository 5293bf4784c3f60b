"""What memory this machine has: RAM within cgroup limits, and NVIDIA GPUs through NVML."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
log = logging.getLogger(__name__)
_V1_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" by a huge number


@dataclass(frozen=True)
class Device:
    """One device that models can be loaded on. `free()`: bytes that its driver says are free."""

    name: str
    description: str
    total: int
    budget: int
    free: Callable[[], int]


def probe(ram_fraction: float, vram_fraction: float) -> list[Device]:
    """Return `cpu` and then the GPUs, with the shares that may be granted."""
    total = total_ram()
    budget = int(total * ram_fraction)
    cpu = Device("cpu", f"RAM, {os.cpu_count()} cores", total, budget, available_ram)
    return [cpu, *_gpus(vram_fraction)]


def total_ram() -> int:
    """Return the bytes of RAM that this process may use at most."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def available_ram() -> int:
    """Return what the system and each cgroup around this process have left, page cache included."""
    free = [psutil.virtual_memory().available]
    free += [max(0, limit - used) for limit, used in _limits()]
    return min(free)


def _limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, use without reclaimable file pages) of each cgroup that limits us."""
    for group in _limited():
        with contextlib.suppress(OSError):  # moved to another group: the limit was the old one's
            if (limit := group.read_limit()) is not None:
                yield limit, group.read_use()


@dataclass(frozen=True)
class _Group:
    """A memory cgroup, by the names of its files in version 1 or 2."""

    folder: Path
    limit: str
    use: str
    cache: str  # key in memory.stat

    def read_limit(self) -> int | None:
        text = (self.folder / self.limit).read_text().strip()
        return None if text == "max" or int(text) >= _V1_UNLIMITED else int(text)

    def read_use(self) -> int:
        used = int((self.folder / self.use).read_text())
        stat = (self.folder / "memory.stat").read_text()
        return used - next(
            (int(v) for k, v in map(str.split, stat.splitlines()) if k == self.cache), 0
        )


@functools.cache
def _limited() -> list[_Group]:
    """Return the groups that had a limit when first asked: reading them all takes its time."""
    limited = []
    for group in _cgroups():
        with contextlib.suppress(OSError):  # the root group has no such files
            if group.read_limit() is not None:
                limited.append(group)
    return limited


def _cgroups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[_Group]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = base / path.lstrip("/")
        while folder != base.parent:
            yield _Group(folder, *names)
            folder = folder.parent


def _gpus(fraction: float) -> Iterator[Device]:
    """Yield the GPUs that CUDA programs of this environment see, in their order.

    NVML numbers by PCI bus. CUDA does the same under CUDA_DEVICE_ORDER=PCI_BUS_ID, which
    matters only on machines with different GPUs.
    """
    try:
        import pynvml
    except ImportError:
        log.warning("no GPU is managed: install llmos[memory] for nvidia-ml-py")
        return
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        for number, handle in enumerate(_visible(handles, pynvml.nvmlDeviceGetHandleByUUID)):
            name = pynvml.nvmlDeviceGetName(handle)
            total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            yield Device(
                f"cuda:{number}",
                name if isinstance(name, str) else name.decode(),
                total,
                int(total * fraction),
                lambda h=handle: int(pynvml.nvmlDeviceGetMemoryInfo(h).free),  # type: ignore[misc]
            )
    except pynvml.NVMLError as exc:
        log.info("no GPU", extra={"nvml": str(exc)})  # normal on a machine without a driver


def _visible(handles: list[T], by_uuid: Callable[[str], T]) -> list[T]:
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return handles
    chosen: list[T] = []
    for item in (part.strip() for part in wanted.split(",")):
        if item.isdigit() and int(item) < len(handles):
            chosen.append(handles[int(item)])
        elif item.startswith(("GPU-", "MIG-")):
            chosen.append(by_uuid(item))
        else:
            break  # as CUDA does: what is invalid, and what follows it, is hidden
    return chosen
