"""Loads a TorchScript or torch.export model and serves it on tensors."""

from __future__ import annotations

import dataclasses
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmos.lib.errors import FailedPrecondition, InvalidArgument, Unavailable
from llmos.servers.execution.engine.base import Engine, ModelSpec
from llmos.servers.execution.engine.module import exported, scripted
from llmos.servers.execution.engine.module.signature import Signature
from llmos.servers.execution.engine.serving import config
from llmos.servers.execution.engine.serving.checks import Fit
from llmos.servers.execution.engine.serving.engine import ServedEngine
from llmos.servers.execution.engine.serving.work import Work

Array = npt.NDArray[Any]
_UNREADABLE = (
    RuntimeError,
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    EOFError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError)


class _Stopper:
    """A module cannot be stopped half-way: setting `terminate` has no effect on a run."""

    terminate = False


class TorchModule:
    """A bare module; see serving.engine.Model. bfloat16 is float32 on both sides of it."""

    def __init__(self, spec: ModelSpec, serving: config.Serving, signature: Signature) -> None:
        """Take a loaded module with its signature."""
        self.ref = spec.ref
        self.device = spec.device
        self.metadata: Mapping[str, str] = {}
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._call = signature.call
        self._fixed = signature.fixed
        self._order = signature.order
        self._plain = {name for name in signature.order if name in signature.numbers}
        self._constants = dict(serving.constants)
        self._dimensions = signature.dimensions
        self._fit = Fit(spec.ref, signature.inputs, signature.outputs, signature.dimensions)
        self._work = Work()

    def check(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> None:
        """Raise InvalidArgument BAD_TENSOR where a request does not fit the model."""
        self._fit.check(inputs, outputs)

    def follows(self, padded: frozenset[str]) -> frozenset[str]:
        """Return the outputs whose second axis has the symbol of that of the inputs `padded`."""
        symbols = {d[1] for n, d in self._dimensions.items() if n in padded and len(d) > 1}
        symbols -= {None}
        return frozenset(
            n for n, d in self._fixed.items() if len(d) > 1 and d[1] in symbols and d[1]
        )

    def stopper(self) -> _Stopper:
        """Return something whose `terminate` may be set."""
        return _Stopper()

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], stopper: Any = None
    ) -> dict[str, Array]:
        """Run the module; `outputs` empty = all. Raises InvalidArgument BAD_TENSOR."""
        types = {s.name: s.dtype for s in self.inputs}
        given = [
            self._constants[name]
            if name in self._plain
            else self._tensor(inputs[name], types.get(name, ""))
            for name in self._order
        ]
        with self._work.one():
            try:
                with torch.inference_mode():
                    found = self._call(*given)
            except _FAILURES as exc:
                text = " ".join(str(exc).split())[-300:]
                raise InvalidArgument(
                    "BAD_TENSOR", f"{self.ref} failed on these values: {text}."
                ) from exc
        results = self._named(found)
        return {name: results[name] for name in outputs} if outputs else results

    def work(self) -> float:
        """Return as Engine.work."""
        return self._work.done()

    def _tensor(self, array: Array, dtype: str) -> torch.Tensor:
        if not array.flags.writeable:
            array = array.copy()  # torch refuses to promise that it will not write
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        return tensor.bfloat16() if dtype == "bfloat16" else tensor

    def _named(self, found: Any) -> dict[str, Array]:
        if isinstance(found, torch.Tensor):
            found = (found,)
        values = list(found.values()) if isinstance(found, dict) else list(found)
        names = (
            [str(k) for k in found]
            if isinstance(found, dict)
            else [s.name for s in self.outputs[: len(values)]]
        )
        if len(names) != len(values) or not all(isinstance(v, torch.Tensor) for v in values):
            raise InvalidArgument(
                "BAD_TENSOR",
                f"{self.ref} gave {len(values)} values that are not the {len(self.outputs)} "
                "tensors that its version declares; correct [[outputs]] in its serving.toml.",
            )
        return {name: _array(value) for name, value in zip(names, values, strict=True)}


def load_module(spec: ModelSpec) -> Engine:
    """Load a version. Raises Unavailable LOAD_FAILED, FailedPrecondition NO_ENGINE."""
    # Whatever torch.export.load reads by torch.load is read without running what is in it.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    serving = config.read(spec.files, spec.changes)
    torch.set_num_threads(
        spec.asked_threads
        or serving.runtime.threads
        or spec.threads
        or len(os.sched_getaffinity(0))
    )
    read = scripted.read if spec.format == "torchscript" else exported.read
    try:
        signature = read(next(iter(spec.files.values())), spec.device, serving)
    except _UNREADABLE as exc:
        text = " ".join(str(exc).split())[:300]
        raise Unavailable("LOAD_FAILED", f"{spec.ref} cannot be loaded by torch: {text}.") from exc
    _check_numbers(spec.ref, signature.call)
    for name in signature.numbers:
        if name not in serving.constants:
            raise FailedPrecondition(
                "NO_ENGINE",
                f"{spec.ref} takes the number {name!r}, which is no tensor; give its value under "
                "[constants] in its serving.toml.",
            )
    # The numbers among the constants are given by TorchModule; the rest are tensors like others.
    tensors = {k: v for k, v in serving.constants.items() if k not in signature.numbers}
    rest = dataclasses.replace(serving, constants=tensors)
    return ServedEngine(spec, TorchModule(spec, serving, signature), rest, "module")


def _check_numbers(ref: str, module: Any) -> None:
    """Raise Unavailable LOAD_FAILED for weights that hold NaN; infinities may be masks."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise Unavailable(
                "LOAD_FAILED",
                f"{ref} holds a weight that is not a number (NaN), in {name[:100]!r}; it would "
                "answer nothing else. Train or export it again.",
            )


def _array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().to("cpu")
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
