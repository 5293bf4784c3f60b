"""Serves a class of a version's own: asks its process, and outlives whatever that does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.lib.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    LLMOSError,
    ResourceExhausted,
    Unavailable,
)
from llmos.servers.execution.engine.base import Engine, ModelSpec
from llmos.servers.execution.engine.python import host
from llmos.servers.execution.engine.python.child import Child, Died, Garbage, Hung, how_it_ended
from llmos.servers.execution.engine.python.declaration import Declaration, interpreter, read
from llmos.servers.execution.engine.serving import config
from llmos.servers.execution.engine.serving.checks import Fit, describe
from llmos.servers.execution.engine.serving.engine import ServedEngine

Array = npt.NDArray[Any]
_LOAD_S = 240.0
_ATTEMPTS = 2  # a process whose zygote died says nothing about the request


class _Stopper:
    """A call cannot be stopped half-way: setting `terminate` has no effect on a run."""

    terminate = False


class PythonModel:
    """See serving.engine.Model. Owns the model's process; a new one is started when it dies.

    A process that died, hung or talked nonsense fails the call that it had, and no other.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, spec: ModelSpec, declared: Declaration) -> None:
        """Start the process. Raises Unavailable LOAD_FAILED."""
        self.ref = spec.ref
        self.device = spec.device
        self.inputs = declared.inputs
        self.outputs = declared.outputs
        self._declared = declared
        self._python = interpreter(spec, declared)
        self._state_dir = Path(spec.state_dir)
        self._order: dict[str, Any] = {
            "name": spec.ref,
            "folder": str(_folder(spec)),
            "class": declared.target,
            "device": spec.device,
            "threads": spec.threads or len(os.sched_getaffinity(0)),
            "cpus": sorted(os.sched_getaffinity(0)),
            "memory_bytes": declared.memory_mb << 20,
        }
        shapes = {s.name: [n if n != -1 else None for n in s.shape] for s in declared.inputs}
        self._fit = Fit(spec.ref, declared.inputs, declared.outputs, shapes)
        self._runs = 0
        self._spent = 0.0
        self._child: Child | None = self._start()

    def check(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> None:
        """Raise InvalidArgument BAD_TENSOR where a request does not fit the model."""
        self._fit.check(inputs, outputs)

    def follows(self, padded: frozenset[str]) -> frozenset[str]:
        """Return nothing: a class declares no relation between its tensors."""
        return frozenset()

    def stopper(self) -> _Stopper:
        """Return something whose `terminate` may be set."""
        return _Stopper()

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], stopper: Any = None
    ) -> dict[str, Array]:
        """Ask the model; `outputs` empty = all.

        Raises InvalidArgument BAD_INPUT; Internal MODEL_FAILED, MODEL_CRASHED, BAD_OUTPUT;
        ResourceExhausted MODEL_MEMORY; DeadlineExceeded MODEL_HUNG; Unavailable LOAD_FAILED.
        """
        pieces = host.frame({"op": "run"}, dict(inputs))
        header, body = self._ask(pieces)
        self._runs += 1
        if "error" in header:
            raise self._error(str(header["error"]), str(header.get("message", ""))[:400])
        try:
            results = host.unpack(np, header["tensors"], body)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            self._end()
            raise self._nonsense(f"tensors that cannot be read ({exc})") from exc
        self._check_outputs(results)
        return {name: results[name] for name in outputs or (o.name for o in self.outputs)}

    def work(self) -> float:
        """Return the runs so far and the CPU seconds of the model's processes."""
        child = self._child
        return self._runs + self._spent + (child.cpu() if child is not None else 0.0)

    def close(self) -> None:
        """End the process."""
        self._end()
        shutil.rmtree(self._order["folder"], ignore_errors=True)

    def _ask(self, pieces: list[bytes]) -> tuple[dict[str, Any], memoryview]:
        stall_s, call_s = self._declared.stall_s, self._declared.call_s
        for attempt in range(_ATTEMPTS):
            child = self._child = self._child or self._start()
            try:
                child.send(pieces, stall_s, call_s)
                return child.receive(stall_s, call_s)
            except Died as exc:
                self._end()
                if exc.args[0] is None and attempt + 1 < _ATTEMPTS:
                    continue
                raise Internal(
                    "MODEL_CRASHED",
                    f"The process of {self.ref} {how_it_ended(exc.args[0])} during this request; "
                    "its log tells more.",
                ) from exc
            except Hung as exc:
                self._end()
                raise DeadlineExceeded(
                    "MODEL_HUNG",
                    f"The process of {self.ref} {exc} and was ended with this request; raise "
                    "stall_s or call_s in its python.toml if it should take so long.",
                ) from exc
            except Garbage as exc:
                self._end()
                raise self._nonsense(str(exc)) from exc
        raise AssertionError("unreachable")

    def _start(self) -> Child:
        child = Child(self._state_dir, self._python, self._order)
        self._child = child
        try:
            failed = child.ready(_LOAD_S)
        except (Died, Hung, Garbage) as exc:
            self._end()
            what = how_it_ended(exc.args[0]) if isinstance(exc, Died) else f"{exc}"
            raise Unavailable(
                "LOAD_FAILED", f"The process of {self.ref} {what} while its class was made."
            ) from exc
        if failed:
            self._end()
            raise Unavailable("LOAD_FAILED", f"The class of {self.ref} failed: {failed}.")
        return child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            self._spent += child.cpu()
            child.kill()

    def _error(self, kind: str, message: str) -> LLMOSError:
        if kind == "value":
            return InvalidArgument("BAD_INPUT", f"{self.ref} refuses these values: {message}.")
        if kind == "memory":
            self._end()  # what it could not give back goes with it
            return ResourceExhausted(
                "MODEL_MEMORY",
                f"{self.ref} wanted more than its {self._declared.memory_mb} MiB for this request; "
                "raise memory_mb in its python.toml.",
            )
        return Internal("MODEL_FAILED", f"{self.ref} failed on this request: {message}.")

    def _nonsense(self, what: str) -> LLMOSError:
        return Internal(
            "BAD_OUTPUT",
            f"The process of {self.ref} wrote what is no answer: {what}; it was ended.",
        )

    def _check_outputs(self, results: Mapping[str, Array]) -> None:
        for spec in self.outputs:
            array = results.get(spec.name)
            if array is None:
                raise Internal("BAD_OUTPUT", f"{self.ref} gave no tensor {spec.name!r}.")
            fits = len(array.shape) == len(spec.shape) and array.dtype == np.dtype(spec.dtype)
            if not fits or any(e not in (-1, n) for n, e in zip(array.shape, spec.shape)):  # noqa: B905
                raise Internal(
                    "BAD_OUTPUT",
                    f"{self.ref} gave {spec.name!r} as {array.dtype} of shape "
                    f"{list(array.shape)}; its python.toml says {describe(spec)}.",
                )


class PythonEngine(ServedEngine):
    """A served engine whose model has a process of its own to end."""

    def __init__(self, spec: ModelSpec, model: PythonModel, serving: config.Serving) -> None:
        """See ServedEngine."""
        super().__init__(spec, model, serving, "python")
        self._process = model

    def close(self) -> None:
        """Stop, and end the model's process."""
        super().close()
        self._process.close()


def load_class(spec: ModelSpec) -> Engine:
    """Load a version. Raises Unavailable LOAD_FAILED, FailedPrecondition NO_ENVIRONMENT."""
    serving = config.read(spec.files, spec.changes)
    return PythonEngine(spec, PythonModel(spec, read(spec)), serving)


def _folder(spec: ModelSpec) -> Path:
    """Return a folder in which the version's files have their names; made anew at every load."""
    parent = Path(spec.state_dir) / "execution" / "python"
    for left in parent.glob(f"{spec.ref}.*"):  # by workers that were killed
        if not Path(f"/proc/{left.suffix[1:]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = parent / f"{spec.ref}.{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    for name, path in spec.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path.absolute())
    return folder
