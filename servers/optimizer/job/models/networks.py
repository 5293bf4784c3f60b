"""Loads the network of a version, or of a file that a job wrote, as a function of arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from llmos.lib.errors import FailedPrecondition
from llmos.servers.optimizer.job.models.subject import Feeds, Network, Subject


def load(subject: Subject, threads: int) -> Network:
    """Load a version's. Raises InvalidArgument BAD_MODEL_FILE, FailedPrecondition WRONG_FORMAT."""
    if subject.format == "onnx":
        return onnx(subject.main, threads)
    if subject.format in ("safetensors", "gguf"):
        return TorchNetwork(module(subject), threads)
    if subject.format in ("torch_export", "torchscript"):
        return from_file(subject.main, threads, subject)
    raise FailedPrecondition(
        "WRONG_FORMAT", f"{subject.ref} is a {subject.format} model, which cannot be measured."
    )


def module(subject: Subject) -> Any:
    """Return a safetensors or GGUF model as a torch module in float32 (torch_folder.Module)."""
    if subject.format == "gguf":
        from llmos.servers.optimizer.job.models import gguf_model

        return gguf_model.load(subject.main)
    from llmos.servers.optimizer.job.models import torch_folder

    return torch_folder.load(subject.folder)


def from_file(path: Path, threads: int, subject: Subject) -> Network:
    """Load what an exporter of ours wrote; its inputs come in the order of ours."""
    import torch

    if path.suffix == ".pt2":
        loader: Any = torch.export.load
        return TorchNetwork(loader(path).module(), threads)
    if path.suffix == ".pt":
        script: Any = torch.jit.load
        return TorchNetwork(script(str(path)).eval(), threads)
    from llmos.servers.optimizer.job.models import torch_folder

    return TorchNetwork(torch_folder.load(path.parent), threads)


def onnx(path: Path, threads: int) -> Network:
    """Return the network in an ONNX file; it is given what it knows of the feeds."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(feeds: Feeds) -> npt.NDArray[Any]:
        given = feeds if set(names) <= set(feeds) else {names[0]: next(iter(feeds.values()))}
        out: npt.NDArray[Any] = session.run(None, {name: given[name] for name in names})[0]
        return out

    return run


def alone(network: Network) -> Network:
    """Return a torch network on one thread, without loading it twice."""
    assert isinstance(network, TorchNetwork)
    return TorchNetwork(network.module, 1)


class TorchNetwork:
    """A torch module as a function of arrays, given by its names, else in their order."""

    def __init__(self, module: Any, threads: int) -> None:
        """Compute with so many threads."""
        self.module = module
        self._threads = threads
        self._count = len(_parameters(module))

    def __call__(self, feeds: Feeds) -> npt.NDArray[Any]:
        """Run it; return its first output."""
        import torch

        torch.set_num_threads(self._threads)
        names = getattr(self.module, "names", None) or list(feeds)[: self._count]
        with torch.inference_mode():
            out = self.module(*(torch.from_numpy(feeds[name]) for name in names))
        result: npt.NDArray[Any] = (out[0] if isinstance(out, tuple) else out).float().numpy()
        return result


def _parameters(module: Any) -> list[str]:
    """Return the names of what `forward` takes; feeds come in the order of the exporters'."""
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        forward: Any = module.forward
        return [str(a.name) for a in forward.schema.arguments[1:]]
    if isinstance(module, torch.fx.GraphModule):
        return [node.name for node in module.graph.nodes if node.op == "placeholder"]
    return list(getattr(module, "names", []))
