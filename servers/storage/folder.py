"""A folder with a model in it: which of its files are the model, and which are needed with it."""

from __future__ import annotations

import re
from pathlib import Path

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.formats import onnx
from llmos.servers.storage.formats.describe import INDEX, shards_of
from llmos.servers.storage.formats.kinds import (
    FORMATS,
    MODELS,
    Kind,
    bad_file,
    check_claim,
    claimed,
    kind_of,
    pickle_refused,
)

# What serving needs beside the weights, and what tells where they are from.
BESIDE = re.compile(
    r"config\.json|generation_config\.json|adapter_config\.json|tokenizer\.json|"
    r"tokenizer_config\.json|vocab\.json|special_tokens_map\.json|added_tokens\.json|"
    r"vocab\.txt|merges\.txt|tokenizer\.model|"
    r"spiece\.model|sentencepiece\.bpe\.model|chat_template\.(jinja|json)|preprocessor_config\.json|"
    r"modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json|"
    r"serving\.toml|labels\.txt|"  # how it is to be served, see docs/models.md
    r"README\.md|LICEN[CS]E(\.txt|\.md)?|NOTICE(\.txt|\.md)?|"
    r"\d+_[A-Za-z]+/(config\.json|model\.safetensors)"
)
_CANONICAL = {Kind.SAFETENSORS: "model.safetensors", Kind.ONNX: "model.onnx"}
_CANONICAL |= {Kind.GGUF: "model.gguf", Kind.TORCHSCRIPT: "model.pt"}
_CANONICAL |= {Kind.TORCH_EXPORT: "model.pt2", Kind.PIPELINE: "pipeline.toml"}
_CANONICAL |= {Kind.PYTHON: "python.toml"}
_MAX_ENTRIES = 10_000

Files = tuple[tuple[str, Path], ...]


class Folder:
    """One folder, its `onnx` and `1_Pooling`-like folders included; links out of it are refused."""

    def __init__(self, path: Path) -> None:
        """List the files. Raises OSError when the folder cannot be read."""
        self.path = path
        self._inside = [path.resolve()]
        if path.resolve().parent.name == "snapshots":  # of a hub's cache: links to its blobs
            self._inside.append(path.resolve().parent.parent / "blobs")
        self.files = self._list(path, "")
        for child in sorted(path.iterdir()):
            if child.is_dir() and (child.name == "onnx" or re.match(r"\d+_", child.name)):
                self.files |= self._list(child, f"{child.name}/")

    def _list(self, path: Path, prefix: str) -> dict[str, Path]:
        files = {}
        for child in sorted(path.iterdir()):
            if child.is_file() and any(child.resolve().is_relative_to(i) for i in self._inside):
                files[f"{prefix}{child.name}"] = child
        return files

    def model(self) -> Files:
        """Return the model's files, the main one first. Raises BAD_MODEL_FILE, PICKLE_REFUSED."""
        if len(self.files) > _MAX_ENTRIES:
            raise bad_file(
                str(self.path), f"over {_MAX_ENTRIES} files; give the model's own folder"
            )
        kinds = {
            name: kind_of(path)
            for name, path in self.files.items()
            if "/" not in name or name.startswith("onnx/")
        }
        by_kind = {k: [n for n, kind in kinds.items() if kind is k] for k in Kind}
        tensors, graphs = by_kind[Kind.SAFETENSORS], by_kind[Kind.ONNX]
        whole = tensors and "config.json" in self.files
        for kind, found in (
            (Kind.PYTHON, by_kind[Kind.PYTHON]),
            (Kind.PIPELINE, by_kind[Kind.PIPELINE]),
            (Kind.SAFETENSORS, tensors if whole else []),
            (Kind.GGUF, by_kind[Kind.GGUF]),
            (Kind.ONNX, graphs),
            (Kind.SAFETENSORS, tensors),
            (Kind.TORCH_EXPORT, by_kind[Kind.TORCH_EXPORT]),
            (Kind.TORCHSCRIPT, by_kind[Kind.TORCHSCRIPT]),
        ):
            if found:
                return self.with_main(self._only(kind, found), kind)
        for name, kind in kinds.items():  # a file that is not what its name says explains most
            if claimed(name) is not None:
                check_claim(name, kind)
        if by_kind[Kind.PICKLE]:
            raise pickle_refused(by_kind[Kind.PICKLE][0])
        raise bad_file(
            str(self.path),
            f"no model in this folder ({FORMATS})",
        )

    def _only(self, kind: Kind, found: list[str]) -> str:
        if kind is Kind.SAFETENSORS and INDEX in self.files:
            shards = sorted(set(shards_of(self.files[INDEX]).values()))
            if missing := [s for s in shards if s not in self.files]:
                raise bad_file(INDEX, f"it names {missing[0][:100]}, which is missing")
            return shards[0]
        for name in (_CANONICAL[kind], f"onnx/{_CANONICAL[kind]}"):
            if name in found:
                return name
        if len(found) == 1:
            return found[0]
        raise bad_file(
            str(self.path),
            f"{len(found)} {kind.value} models in this folder ({', '.join(found[:5])}); give the "
            "path of one of them",
        )

    def with_main(self, main: str, kind: Kind) -> Files:
        """Return the files of the model whose main file is `main`, a name in this folder."""
        if main not in self.files:
            raise self._outside(main)
        if kind is Kind.PYTHON:
            return self._code(main)
        if kind is Kind.GGUF:
            return ((_CANONICAL[kind], self.files[main]),)
        shards: list[str] = []
        if kind is Kind.SAFETENSORS and INDEX in self.files:
            listed = sorted(set(shards_of(self.files[INDEX]).values()))
            shards = [INDEX, *listed] if main in listed else []
        first = (main if shards else _CANONICAL[kind], self.files[main])
        extra = [(s, self._at(s, s)) for s in shards if s != main]
        if kind is Kind.ONNX:
            extra = self._external(main)
        return (first, *extra, *self._beside({first[0], *(n for n, _ in extra)}))

    def _code(self, main: str) -> Files:
        """Return all of a class's folder: what its code reads is not known here, but no pickle."""
        rest = {n: p for n, p in self.files.items() if n != main}
        for name, path in rest.items():
            if kind_of(path) is Kind.PICKLE:
                raise pickle_refused(name)
        return ((_CANONICAL[Kind.PYTHON], self.files[main]), *rest.items())

    def _external(self, main: str) -> list[tuple[str, Path]]:
        graph = onnx.read(main, self.files[main])
        folder = main.rpartition("/")[0]
        prefix = f"{folder}/" if folder else ""
        return [(place, self._at(f"{prefix}{place}", place)) for place in sorted(graph.external)]

    def _at(self, name: str, called: str) -> Path:
        path = self.files.get(name)
        if path is not None:
            return path
        inner = self.path / name  # one level of folders that is not listed, e.g. data/weights.bin
        if inner.is_file() and any(inner.resolve().is_relative_to(i) for i in self._inside):
            return inner
        raise bad_file(called, "missing, or a link to outside of its folder; put it beside")

    def _beside(self, taken: set[str]) -> Files:
        beside = {n: p for n, p in self.files.items() if BESIDE.fullmatch(n) and n not in taken}
        if self.path.name == "onnx" and "tokenizer.json" not in beside:
            parent = Folder(self.path.parent).files
            beside |= {
                n: p
                for n, p in parent.items()
                if BESIDE.fullmatch(n) and n not in beside and n not in taken
            }
        models = {name for name, path in beside.items() if "/" not in name and _is_model(path)}
        return tuple((n, p) for n, p in beside.items() if n not in models)

    def _outside(self, main: str) -> InvalidArgument:
        return bad_file(main, "it is a link to outside of its folder; give the file itself")


def _is_model(path: Path) -> bool:
    return kind_of(path) in MODELS
