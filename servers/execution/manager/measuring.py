"""What a process uses of a device, as the operating system or the driver says."""

from __future__ import annotations

from pathlib import Path


def used_bytes(pid: int, device: str) -> int:
    """Return the bytes that a process uses of `cpu` or `cuda:N`; 0 when it has ended."""
    if device.startswith("cuda:"):
        return _of_gpu(pid, int(device.partition(":")[2]))
    return pss(pid)


def pss(pid: int) -> int:
    """Return a process's proportional set size, bytes: pages that N processes map count 1/N."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:  # it has ended, or belongs to somebody else
        return 0
    found = [line.split() for line in text.splitlines() if line.startswith("Pss:")]
    return int(found[0][1]) * 1024 if found else 0


def _of_gpu(pid: int, number: int) -> int:
    """Return what NVML says; 0 where it does not see the process (another PID namespace)."""
    try:
        import pynvml
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(number)
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return 0
    return next((int(p.usedGpuMemory or 0) for p in running if p.pid == pid), 0)
