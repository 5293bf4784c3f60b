"""What a set of files is as a model: finds the main one, checks everything, reads its numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from llmos.servers.storage.formats import card, gguf, onnx, safetensors, torchzip
from llmos.servers.storage.formats.kinds import (
    FORMATS,
    MODELS,
    Kind,
    bad_file,
    check_claim,
    kind_of,
)
from llmos.servers.storage.model import Description, Format, Task

INDEX = "model.safetensors.index.json"


def describe(files: Mapping[str, Path]) -> tuple[str, Description]:
    """Return (name of the main file, description).

    `files` maps names within the version to where their bytes are, in the order of importance:
    the first one that is a model is the main one. Raises BAD_MODEL_FILE, PICKLE_REFUSED.
    """
    kinds = {name: kind_of(path) for name, path in files.items()}
    for name, kind in kinds.items():
        check_claim(name, kind)
    main = next((name for name, kind in kinds.items() if kind in MODELS), None)
    if main is None:
        raise bad_file(
            next(iter(files), "(no files)"),
            f"not a model: no {FORMATS}",
        )
    beside = card.read(files)
    about = _READERS[kinds[main]](main, files, beside)
    return main, dataclasses.replace(
        about,
        license=card.spdx(about.license or beside.license),
        tokenizer=about.tokenizer or beside.tokenizer_kind,
        chat_template=about.chat_template or beside.chat_template,
    )


def _gguf(main: str, files: Mapping[str, Path], beside: card.Card) -> Description:
    return gguf.describe(main, files[main])


def _safetensors(main: str, files: Mapping[str, Path], beside: card.Card) -> Description:
    weights = safetensors.Weights()
    shards = shards_of(files[INDEX]) if INDEX in files else {}
    for name in sorted(set(shards.values())) or [main]:
        if name not in files:
            raise bad_file(INDEX, f"it names {name[:100]}, which is missing; download it again")
        safetensors.read(name, files[name], weights)
    if lost := sorted(set(shards) - weights.tensors):
        raise bad_file(
            INDEX, f"tensor {lost[0][:100]} is in none of its files; download them again"
        )
    return Description(
        format=Format.SAFETENSORS,
        task=beside.task if beside.tokenizer else Task.UNSPECIFIED,
        architecture=beside.architecture,
        parameters=weights.parameters,
        dtype=weights.dtype,
        context_length=beside.context_length,
    )


def _onnx(main: str, files: Mapping[str, Path], beside: card.Card) -> Description:
    graph = onnx.read(main, files[main])
    folder = main.rpartition("/")[0]
    onnx.check_external(main, graph, f"{folder}/" if folder else "", files)
    return Description(
        format=Format.ONNX,
        task=Task.EMBED if beside.tokenizer else Task.PREDICT,
        architecture=beside.architecture,
        parameters=graph.parameters,
        dtype=graph.dtype,
        context_length=beside.context_length,
    )


def _script(main: str, files: Mapping[str, Path], beside: card.Card) -> Description:
    return torchzip.describe_script(main, files[main])


def _export(main: str, files: Mapping[str, Path], beside: card.Card) -> Description:
    return torchzip.describe_export(main, files[main])


def _pipeline(main: str, files: Mapping[str, Path], beside: card.Card) -> Description:
    return Description(format=Format.PIPELINE, task=Task.PREDICT)


def _python(main: str, files: Mapping[str, Path], beside: card.Card) -> Description:
    return Description(format=Format.PYTHON, task=Task.PREDICT)


_READERS = {
    Kind.GGUF: _gguf,
    Kind.SAFETENSORS: _safetensors,
    Kind.ONNX: _onnx,
    Kind.TORCHSCRIPT: _script,
    Kind.TORCH_EXPORT: _export,
    Kind.PIPELINE: _pipeline,
    Kind.PYTHON: _python,
}


def shards_of(index: Path) -> dict[str, str]:
    """Return {tensor: file} of a model.safetensors.index.json. Raises BAD_MODEL_FILE."""
    try:
        shards = json.loads(index.read_bytes())["weight_map"]
        if shards and all(isinstance(k, str) and isinstance(v, str) for k, v in shards.items()):
            return dict(shards)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise bad_file(INDEX, "not an index of safetensors files; download it again")
