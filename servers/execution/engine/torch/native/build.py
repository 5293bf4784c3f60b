"""Compiles kernels.cpp for this very CPU at first use and keeps the result. Owns the cache folder.

Wheels carry the source only: instruction sets differ, and so the machine that runs a model builds
for itself, once. Where there is no compiler, callers do without (see docs/adr).
"""

from __future__ import annotations

import ctypes
import fcntl
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
_HEADERS = ("pool.h", "products.h", "unpack.h", "vectors.h")
_PARTS = [_SOURCE, *(_SOURCE.with_name(name) for name in _HEADERS)]
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
    try:
        path = _target()
        if path is None or not (path.exists() or _compiled(path)):
            return None
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home directory
        log.warning("no compiled kernels: %s", error)
        return None


def missing() -> bool:
    """Say whether the kernels are still to be compiled, as far as this machine can."""
    try:
        path = _target()
        return path is not None and not path.exists() and _compiler() is not None
    except (OSError, RuntimeError):  # `library` tells whoever wants them
        return False


def _target() -> Path | None:
    """Return where the kernels for this CPU are kept; None when it can have none (logged)."""
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
    return _cache() / f"kernels-{key.hexdigest()[:24]}.so"


def _compiled(path: Path) -> bool:
    """Compile, or wait for who is at it, e.g. the manager's own run of this file at its start."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process that holds it
        return path.exists() or _compile(path)


def _compiler() -> str | None:
    return next(
        (found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None
    )


def _compile(path: Path) -> bool:
    compiler = _compiler()
    if compiler is None:
        log.info("no compiled kernels: no C++ compiler here (c++, g++, clang++)")
        return False
    # Beside its final place, which gets a whole file or none.
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


if __name__ == "__main__":
    library()
