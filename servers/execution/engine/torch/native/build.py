"""Compiles kernels.cpp for this very CPU at first use and keeps the result. Owns the cache folder.

Wheels carry the source only: instruction sets differ, and so the machine that runs a model builds
for itself, once. Where there is no compiler, callers do without (see docs/adr).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("kernels.cpp")
_PARTS = [_SOURCE, *(_SOURCE.with_name(name) for name in ("pool.h", "vectors.h"))]
_FLAGS = (
    "-O3",
    "-march=native",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
)
_NEEDS = {"avx2", "fma", "f16c"}  # flags of /proc/cpuinfo without which it would not compile
_PATIENCE_S = 120


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the kernels, compiled now if need be; None where they cannot be had (logged)."""
    flags = _cpu_flags()
    if platform.machine() not in ("x86_64", "AMD64") or not flags >= _NEEDS:
        log.info("no compiled kernels: this CPU has no AVX2")
        return None
    if os.environ.get("LLMOS_NATIVE") == "0":
        log.info("no compiled kernels: LLMOS_NATIVE is 0")
        return None
    key = hashlib.sha256(
        b"".join(p.read_bytes() for p in _PARTS) + " ".join((*_FLAGS, *sorted(flags))).encode()
    )
    try:
        path = _cache() / f"kernels-{key.hexdigest()[:24]}.so"
        if not path.exists() and not _compile(path):
            return None
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home directory
        log.warning("no compiled kernels: %s", error)
        return None


def _compile(path: Path) -> bool:
    compiler = next(
        (found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None
    )
    if compiler is None:
        log.info("no compiled kernels: no C++ compiler here (c++, g++, clang++)")
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Beside its final place: several workers may compile at once, and each renames a whole file.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        command = [compiler, *_FLAGS, "-o", str(fresh), str(_SOURCE)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
            )
        except subprocess.TimeoutExpired:
            log.warning("no compiled kernels: %s took over %d s", compiler, _PATIENCE_S)
            return False
        if done.returncode:
            log.warning("no compiled kernels: %s failed: %s", compiler, done.stderr[-500:])
            return False
        fresh.replace(path)
    log.info("compiled %s", path)
    return True


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llmos"


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    for line in info.read_text("utf-8", "replace").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
