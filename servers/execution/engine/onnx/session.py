"""One ONNX Runtime session: opens it, checks tensors against it, runs it. Blocking, no text."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from llmos.lib.errors import Cancelled, FailedPrecondition, InvalidArgument, Unavailable
from llmos.servers.execution.engine.base import ModelSpec, TensorSpec
from llmos.servers.execution.engine.onnx import bfloat16, is_weights
from llmos.servers.execution.engine.onnx.prepacked import FAILURES, Prepacked
from llmos.servers.execution.engine.onnx.weights import not_numbers
from llmos.servers.execution.engine.serving.checks import Fit
from llmos.servers.execution.engine.serving.config import Runtime
from llmos.servers.execution.engine.serving.work import Work

Tensors = Mapping[str, npt.NDArray[Any]]
log = logging.getLogger(__name__)

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(string)": "object",
    **{f"tensor({n})": n for n in ("bool", "int8", "int16", "int32", "int64")},
    **{f"tensor({n})": n for n in ("uint8", "uint16", "uint32", "uint64")},
}
_STATE = ort.capi.onnxruntime_pybind11_state
_BAD_INPUT = (_STATE.InvalidArgument, ValueError)


class Session:
    """A loaded ONNX model. bfloat16 tensors are given and taken as float32 arrays."""

    def __init__(self, spec: ModelSpec, runtime: Runtime | None = None) -> None:
        """Load the version's main file.

        Raises Unavailable LOAD_FAILED; FailedPrecondition NO_ENGINE for inputs that are not
        tensors of a type numpy has.
        """
        self.ref = spec.ref
        self._work = Work()
        self._session = _open(spec, runtime or Runtime())
        self.metadata: Mapping[str, str] = dict(
            self._session.get_modelmeta().custom_metadata_map or {}
        )
        self.device = "cpu"
        if self._session.get_providers()[0] == "CUDAExecutionProvider":
            self.device = spec.device
        self._in = {i.name: i for i in self._session.get_inputs()}
        for one in self._in.values():
            if one.type not in _DTYPES:
                raise FailedPrecondition(
                    "NO_ENGINE",
                    f"{spec.ref} takes {one.name!r} of type {one.type}; only plain tensors of "
                    "booleans, numbers and strings can be given.",
                )
        # Outputs that are no tensors (maps of class probabilities, say) cannot be sent: left out.
        outs = [o for o in self._session.get_outputs() if o.type in _DTYPES]
        self.inputs = tuple(_spec(i) for i in self._in.values())
        self.outputs = tuple(_spec(o) for o in outs)
        dimensions = {i.name: i.shape for i in self._in.values() if i.shape is not None}
        self._fit = Fit(spec.ref, self.inputs, self.outputs, dimensions)
        types = {n.type for n in (*self._in.values(), *outs)}
        self._bfloat16 = "tensor(bfloat16)" in types
        if self._bfloat16 and "tensor(string)" in types:
            raise FailedPrecondition(
                "NO_ENGINE",
                f"{spec.ref} has tensors of strings and of bfloat16, which ONNX Runtime's Python "
                "interface cannot run together; cast the latter to float32 in the model.",
            )

    def check(self, inputs: Tensors, outputs: Sequence[str]) -> None:
        """Raise InvalidArgument BAD_TENSOR where a request does not fit the model."""
        self._fit.check(inputs, outputs)

    def follows(self, padded: frozenset[str]) -> frozenset[str]:
        """Return the outputs whose second axis has the symbol of that of the inputs `padded`."""
        symbols = {self._in[n].shape[1] for n in padded if len(self._in[n].shape or ()) > 1}
        return frozenset(
            o.name
            for o in self._session.get_outputs()
            if len(o.shape or ()) > 1 and isinstance(o.shape[1], str) and o.shape[1] in symbols
        )

    def stopper(self) -> Any:
        """Return what ends one run, at its next node."""
        return ort.RunOptions()

    def run(
        self, inputs: Tensors, outputs: Sequence[str], options: Any = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the model; `outputs` empty = all. Blocks without holding the interpreter.

        Raises InvalidArgument BAD_TENSOR when the model refuses the values, Cancelled when
        `options.terminate` was set.
        """
        names = list(outputs) or [s.name for s in self.outputs]
        try:
            with self._work.one():
                if self._bfloat16:
                    types = {s.name: s.dtype for s in self.inputs}
                    return bfloat16.run(self._session, names, inputs, types, options)
                values = self._session.run(names, dict(inputs), options)
            return dict(zip(names, values, strict=True))
        except _BAD_INPUT as exc:
            raise _bad(f"{self.ref} refuses its input: {_sentence(exc)}") from exc
        except FAILURES as exc:
            if options is not None and options.terminate:
                raise Cancelled("CANCELLED", "The call was cancelled.") from exc
            # What fails at run time for these values only, e.g. an index beyond a table.
            raise _bad(f"{self.ref} failed on these values: {_sentence(exc)}") from exc

    def work(self) -> float:
        """Return as Engine.work; not to be asked after the thread that runs has ended."""
        return self._work.done()


def _open(spec: ModelSpec, runtime: Runtime) -> Any:
    providers = _providers(spec.device)

    def options() -> Any:
        return _options(spec, runtime)

    def make(path: Path, given: Any) -> Any:
        return ort.InferenceSession(str(path), given, providers=providers)

    kept = Prepacked(spec) if Prepacked.suits(spec, providers) else None
    if kept is not None and (session := kept.open(options, make)) is not None:
        return session
    bad = not_numbers(spec.files)
    session = None
    try:
        with tempfile.TemporaryDirectory(prefix="llmos-onnx-") as folder:
            main = next(iter(spec.files.values()))
            if any(is_weights(name) for name in list(spec.files)[1:]):
                main = _lay_out(spec.files, Path(folder))
            if kept is not None and not bad and kept.keep(main, options, make):
                session = kept.open(options, make)
            if session is None:
                session = make(main, options())
    except (*FAILURES, OSError) as exc:
        raise Unavailable(
            "LOAD_FAILED", f"{spec.ref} cannot be loaded by ONNX Runtime: {_sentence(exc)}"
        ) from exc
    if bad:
        raise Unavailable(
            "LOAD_FAILED",
            f"{spec.ref} holds a weight that is not a number (NaN), in {bad[:100]!r}; it would "
            "answer nothing else. Train or export it again.",
        )
    if spec.device != "cpu" and session.get_providers()[0] != "CUDAExecutionProvider":
        log.warning("no CUDA provider, running on CPU", extra={"model": spec.ref})
    return session


def _options(spec: ModelSpec, runtime: Runtime) -> Any:
    options = ort.SessionOptions()
    threads = spec.asked_threads or runtime.threads or spec.threads
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    spin = "1" if runtime.spin else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised; not twice on stderr
    # Threads spin within a run (it is a third faster) but not after it: other models want the CPU.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _lay_out(files: Mapping[str, Path], folder: Path) -> Path:
    """Give files their own names again, which weights outside the main file are found by."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path)
    return folder / next(iter(files))


def _providers(device: str) -> list[Any]:
    if (
        not device.startswith("cuda")
        or "CUDAExecutionProvider" not in ort.get_available_providers()
    ):
        return ["CPUExecutionProvider"]
    ort.preload_dlls()  # finds the CUDA libraries that came with torch's wheels
    index = int(device.partition(":")[2] or 0)
    return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]


def _spec(node: Any) -> TensorSpec:
    shape = [d if isinstance(d, int) else -1 for d in node.shape or ()]
    return TensorSpec(node.name, _DTYPES[node.type], shape)


def _bad(message: str) -> InvalidArgument:
    return InvalidArgument("BAD_TENSOR", message)


def _sentence(exc: BaseException) -> str:
    """Return the runtime's message on one line, without its prefixes."""
    text = " ".join(str(exc).split()).removeprefix("[ONNXRuntimeError] : ")
    return text.rpartition("Status Message: ")[2].rstrip(".")[:400] + "."
