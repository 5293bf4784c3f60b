"""A version to be measured: what goes in, what comes out, whatever its format is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.api.storage.v1 import registry_pb2
from llmos.lib.encoder import TextEncoder
from llmos.lib.errors import FailedPrecondition, InvalidArgument

Feeds = dict[str, npt.NDArray[Any]]
Network = Callable[[Feeds], npt.NDArray[Any]]
BATCH = 16
TOKENS = 128  # of a text, for measuring
WEIGHTS = (".safetensors", ".safetensors.index.json", ".onnx", ".onnx.data", ".gguf", ".pt2", ".pt")


@dataclass(frozen=True)
class Batch:
    """Rows put together; `order` has their places in the whole."""

    feeds: Feeds
    order: Sequence[int]


class Subject:
    """The files of a version in a folder, without its network: that is loaded by `network`."""

    def __init__(self, version: registry_pb2.ModelVersion, folder: Path) -> None:
        """Read what is beside the weights."""
        self.ref = f"{version.name}@{version.version}"
        self.version, self.folder = version, folder
        self.format = registry_pb2.Format.Name(version.format).removeprefix("FORMAT_").lower()
        self.files = {file.name: folder / file.name for file in version.files}
        config = self.files.get("config.json")
        self.config: dict[str, Any] = json.loads(config.read_text()) if config else {}
        self.task = _task(version, self.config)
        if self.format == "gguf" and "tokenizer.json" not in self.files:
            from llmos.servers.optimizer.job.models import gguf_model

            gguf_model.tokenizer(self.main, folder / "tokenizer")
            self.files["tokenizer.json"] = folder / "tokenizer" / "tokenizer.json"
        self.encoder = (
            TextEncoder(self.files, limit=TOKENS) if "tokenizer.json" in self.files else None
        )

    @property
    def size_bytes(self) -> int:
        """Return the bytes of its weights."""
        return sum(f.size for f in self.version.files if f.name.endswith(WEIGHTS))

    @property
    def beside(self) -> dict[str, str]:
        """Return the sha256 of what is beside the weights, by name."""
        return {f.name: f.sha256 for f in self.version.files if not f.name.endswith(WEIGHTS)}

    @property
    def main(self) -> Path:
        """Return its main weight file."""
        return self.folder / self.version.files[0].name

    def batches(self, inputs: Sequence[Any], size: int = BATCH) -> Iterator[Batch]:
        """Yield the inputs as the network takes them; texts of about the same length together.

        Raises FailedPrecondition WRONG_DATA when it takes other things.
        """
        if isinstance(inputs[0], str):
            if self.encoder is None:
                raise FailedPrecondition(
                    "WRONG_DATA",
                    f"{self.ref} has no tokenizer.json, so it takes no texts; name another data "
                    "set or column in `data`.",
                )
            encoded = [self.encoder.encode(text) for text in inputs]
            order = sorted(range(len(inputs)), key=lambda i: len(encoded[i].ids))
            for start in range(0, len(order), size):
                some = order[start : start + size]
                yield Batch(dict(self.encoder.batch([encoded[i] for i in some])), some)
            return
        if self.encoder is not None:
            raise FailedPrecondition(
                "WRONG_DATA", f"{self.ref} takes texts; the data's input column has none."
            )
        for start in range(0, len(inputs), size):
            part = np.stack(inputs[start : start + size])
            yield Batch({"x": prepare(part)}, range(start, start + len(part)))

    def view(self, out: npt.NDArray[Any], feeds: Feeds) -> npt.NDArray[np.float32]:
        """Return the rows that are compared: vectors, scores, or the logits of real tokens."""
        values = out.astype(np.float32, copy=False)
        if self.task == "embed" and self.encoder is not None:
            return self.encoder.pool(values, feeds["attention_mask"])
        if self.task == "generate":
            flat: npt.NDArray[np.float32] = values[feeds["attention_mask"] > 0]
            return flat
        return values.reshape(len(values), -1)

    def network(self, threads: int) -> Network:
        """Load the weights. Raises InvalidArgument BAD_MODEL_FILE."""
        from llmos.servers.optimizer.job.models import networks

        return networks.load(self, threads)


def prepare(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return arrays as networks take them: float64 becomes float32, bytes stay (see networks)."""
    return values.astype(np.float32) if values.dtype == np.float64 else values


def _task(version: registry_pb2.ModelVersion, config: Mapping[str, Any]) -> str:
    name = (config.get("architectures") or [""])[0]
    if config.get("model_type") == "llmos":  # of the kind train
        return "classify" if int(config.get("outputs", 1)) > 1 else "predict"
    if version.task == registry_pb2.TASK_GENERATE or name.endswith("ForCausalLM"):
        return "generate"
    if name.endswith("ForSequenceClassification"):
        return "classify"
    if name.endswith("ForConditionalGeneration"):
        return "translate"
    if version.task == registry_pb2.TASK_EMBED:
        return "embed"
    if version.task == registry_pb2.TASK_PREDICT:
        return "predict"
    raise InvalidArgument(
        "BAD_MODEL_FILE",
        f"{version.name}@{version.version} does not say what it does: its config.json names no "
        "architecture that is known.",
    )
