"""What `doctor` looks at on any machine: processor, memory, limits, disk. Reads, never writes."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GOOD, WARN, BAD = "good", "warn", "bad"
_OLDEST_PYTHON = (3, 11)
_FILES = 4096  # a kernel with a thousand ports and as many plain clients
_PROCESSES = 1024
_FREE_GIB = 5.0  # a small model, its quantised copies and the logs
_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `state` is GOOD, WARN or BAD, `cure` what to do if not good."""

    state: str
    about: str
    what: str
    cure: str = ""


def machine() -> Iterator[Finding]:
    """Look at the system, the Python and the processor."""
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if platform.system() == "Linux":
        yield Finding(GOOD, "system", system)
    else:
        yield Finding(BAD, "system", system, "run LLM OS on Linux, e.g. in a container")
    python = platform.python_version()
    if sys.version_info >= _OLDEST_PYTHON:
        yield Finding(GOOD, "python", python)
    else:
        yield Finding(BAD, "python", python, "install Python 3.11 or newer")
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    text = f"{cores} cores for us, load {load:.1f}"
    if load > 2 * cores:
        yield Finding(WARN, "processor", text, "something else keeps it busy: answers will be slow")
    else:
        yield Finding(GOOD, "processor", text)


def memory() -> Iterator[Finding]:
    """Look at RAM, at what this cgroup may have of it, and at shared memory."""
    import psutil

    room = psutil.virtual_memory()
    text = f"{room.available / 2**30:.1f} of {room.total / 2**30:.1f} GiB free"
    allowed = _cgroup_limit()
    if allowed is not None and allowed < room.total:
        text += f", at most {allowed / 2**30:.1f} GiB for this cgroup"
    few = min(room.available, allowed or room.available) < 2 * 2**30
    cure = "stop other programs, or load small models only"
    yield Finding(WARN if few else GOOD, "memory", text, cure if few else "")
    if not _SHARED.is_dir():
        yield Finding(WARN, "shared memory", f"no {_SHARED}", "mount a tmpfs there")
        return
    shared = shutil.disk_usage(_SHARED)
    text = f"{shared.free / 2**30:.1f} GiB free in {_SHARED}"
    if shared.free < 256 << 20:
        cure = "give it more room (docker run --shm-size=1g): tensors are passed there"
        yield Finding(WARN, "shared memory", text, cure)
    else:
        yield Finding(GOOD, "shared memory", text)


def _cgroup_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None  # no cgroup v2 here
    return None if text == "max" else int(text)


def limits() -> Iterator[Finding]:
    """Look at the limits that this shell gives to processes."""
    import resource

    for about, kind, wanted, flag in (
        ("file limit", resource.RLIMIT_NOFILE, _FILES, "-n"),
        ("process limit", resource.RLIMIT_NPROC, _PROCESSES, "-u"),
    ):
        soft, hard = resource.getrlimit(kind)
        text = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            yield Finding(GOOD, about, text)
        elif hard == resource.RLIM_INFINITY or hard >= wanted:
            yield Finding(WARN, about, text, f"ulimit {flag} {wanted}")
        else:
            cure = f"raise the limit to {wanted} in /etc/security/limits.conf"
            yield Finding(WARN, about, text, cure)


def disk(state_dir: Path) -> Iterator[Finding]:
    """Look at the disk of the state directory, and whether it can be written."""
    place = state_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    text = f"{free:.1f} GiB free for {state_dir}"
    if not os.access(place, os.W_OK | os.X_OK):
        cure = "make it writable, or name another by --state-dir or LLMOS_STATE_DIR"
        yield Finding(BAD, "disk", f"{place} cannot be written", cure)
    elif free < _FREE_GIB:
        cure = "free some; `llmos-ctl storage gc` gives back what no version uses"
        yield Finding(WARN, "disk", text, cure)
    else:
        yield Finding(GOOD, "disk", text)
