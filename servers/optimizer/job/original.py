"""The original network in torch: loads it, runs it, exports it. Imports torch: seconds."""

from __future__ import annotations

import inspect
import os
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the import: nothing may be asked of the network

import numpy as np
import numpy.typing as npt
import onnx
import torch
from transformers import AutoModel

from llmos.lib.errors import FailedPrecondition, InvalidArgument

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"


class _Hidden(torch.nn.Module):
    """The encoder with its inputs in our order and its token vectors as the only output."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        inputs = dict(zip(self.names, tensors, strict=True))
        hidden: torch.Tensor = self.model(**inputs, return_dict=True).last_hidden_state
        return hidden


class Original:
    """A text encoder from safetensors."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Load it, offline, without code of its own. Raises InvalidArgument BAD_MODEL_FILE."""
        torch.set_num_threads(threads)
        try:
            model = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, RuntimeError) as exc:
            text = " ".join(str(exc).split())[:300]
            raise InvalidArgument(
                "BAD_MODEL_FILE", f"transformers cannot load the source: {text}"
            ) from exc
        known = inspect.signature(model.forward).parameters
        self._names = [name for name in INPUTS if name in known]
        if "input_ids" not in self._names or "attention_mask" not in self._names:
            raise FailedPrecondition(
                "WRONG_FORMAT", f"{type(model).__name__} is no text encoder: it takes no text."
            )
        self._module = _Hidden(model, self._names).eval()

    def __call__(self, feeds: dict[str, npt.NDArray[np.int64]]) -> npt.NDArray[Any]:
        """Run it on a batch; return token vectors."""
        with torch.inference_mode():
            hidden = self._module(*(torch.from_numpy(feeds[name]) for name in self._names))
        result: npt.NDArray[Any] = hidden.numpy()
        return result

    def use_threads(self, threads: int) -> None:
        """Compute with so many threads from now on."""
        torch.set_num_threads(threads)

    def export(self, path: Path) -> None:
        """Write it as one ONNX file with free batch and sequence, and check the file."""
        ids = torch.ones((2, 8), dtype=torch.long)
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0  # a padded row, so that no exporter takes the mask for all ones
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            program = torch.onnx.export(
                self._module,
                tuple(given[name] for name in self._names),
                dynamo=True,
                dynamic_shapes=(tuple(free for _ in self._names),),
                input_names=self._names,
                output_names=[OUTPUT],
                verbose=False,
            )
        assert program is not None  # with dynamo=True
        temporary = path.with_suffix(".tmp")
        program.save(str(temporary), external_data=False)
        onnx.checker.check_model(str(temporary), full_check=True)
        temporary.replace(path)
