"""Owns the optimised graphs that are kept with their weights as ONNX Runtime computes with them.

A session fuses nodes and packs matrices anew for every worker, into memory of its own. Saved with
`session.save_external_prepacked_constant_initializers` the weights are a file that the runtime
maps: its pages are those of all workers, and opening it takes a fraction of the time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from llmos.servers.execution.engine import keeping
from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.onnx import is_weights

FORMAT = 1  # to be raised when sessions come to be saved otherwise
WORTH = 4 << 20  # bytes of weights; fewer are packed sooner than they are found
_SUFFIX = ".onnxruntime"
_GRAPH, _WEIGHTS = "model.onnx", "weights.bin"
_PACKED = 2  # packing may keep a matrix both ways: so many times the weights must find room

_STATE = ort.capi.onnxruntime_pybind11_state
FAILURES = (  # what the runtime raises
    _STATE.Fail,
    _STATE.EPFail,
    _STATE.RuntimeException,
    _STATE.NotImplemented,
    _STATE.InvalidGraph,
    _STATE.InvalidProtobuf,
    _STATE.InvalidArgument,
    _STATE.NoSuchFile,
    _STATE.NoModel,
    RuntimeError,
)

log = logging.getLogger(__name__)

Open = Callable[[Path, ort.SessionOptions], ort.InferenceSession]


class Prepacked:
    """A version's saved session."""

    def __init__(self, spec: ModelSpec) -> None:
        """Say where it is or would be; touches nothing."""
        self._folder = keeping.folder_of(spec.state_dir)
        self._bytes = sum(p.stat().st_size for n, p in spec.files.items() if is_weights(n))
        self._ref = spec.ref
        files = [keeping.identity(spec, name) for name in spec.files if is_weights(name)]
        known = [FORMAT, files, ort.__version__, platform.machine(), keeping.cpu()]
        key = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
        self._path = self._folder / f"{key}{_SUFFIX}"

    @staticmethod
    def suits(spec: ModelSpec, providers: list[Any]) -> bool:
        """Return whether a version is worth it: on the CPU, with weights of some size."""
        if not spec.state_dir or providers != ["CPUExecutionProvider"]:
            return False
        return sum(p.stat().st_size for n, p in spec.files.items() if is_weights(n)) >= WORTH

    def open(self, options: Callable[[], ort.SessionOptions], make: Open) -> Any:
        """Return a session over what is kept, or None when there is none, or it is damaged."""
        if not self._path.exists():
            return None
        given = options()
        # It is optimised already, and for this very CPU.
        given.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            os.utime(self._path)  # when it was used last
            return make(self._path / _GRAPH, given)
        except (*FAILURES, OSError) as error:  # the original is still there
            self._drop(str(error))
            return None

    def keep(self, main: Path, options: Callable[[], ort.SessionOptions], make: Open) -> bool:
        """Open the original and save it; return whether that went well.

        Under its name only when it is on the disk for sure: what a power failure leaves is whole.
        """
        fresh = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not keeping.make_room(self._folder, self._bytes * _PACKED):
                log.info("no room for packed weights", extra={"bytes": self._bytes * _PACKED})
                return False
            fresh = Path(tempfile.mkdtemp(prefix=f".{os.getpid()}-", dir=self._folder))
            make(main, _saving(options(), fresh))
            for name in (_WEIGHTS, _GRAPH):
                _sync(fresh / name)
            fresh.rename(self._path)
        except (*FAILURES, OSError) as error:  # e.g. a node that cannot be written
            log.info("weights are not shared", extra={"model": self._ref, "cause": str(error)})
            if fresh is not None:
                keeping.remove(fresh)
            return self._path.exists()  # another worker was quicker
        _sync(self._folder)
        return True

    def _drop(self, why: str) -> None:
        log.warning("packed weights are of no use", extra={"model": self._ref, "cause": why})
        keeping.remove(self._path)


def _saving(options: ort.SessionOptions, folder: Path) -> ort.SessionOptions:
    options.optimized_model_filepath = str(folder / _GRAPH)
    for key, value in {
        "save_external_prepacked_constant_initializers": "1",
        "optimized_model_external_initializers_file_name": _WEIGHTS,
        "optimized_model_external_initializers_min_size_in_bytes": "1024",
    }.items():
        options.add_session_config_entry(f"session.{key}", value)
    return options


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
