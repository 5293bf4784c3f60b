"""What a file is, told by its first bytes and its structure, never by its name."""

from __future__ import annotations

import io
import pickletools
import re
import tomllib
from enum import Enum
from pathlib import Path

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.formats import zips
from llmos.servers.storage.names import short

MAX_HEADER = 100_000_000  # as in the safetensors format
_PICKLE_PROBE = 1 << 16
_PICKLE_WORK = {"GLOBAL", "REDUCE", "BUILD", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"}
# ModelProto's fields: number -> wire type.
_ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}


class Kind(Enum):
    """What a file's content is."""

    GGUF = "GGUF"
    SAFETENSORS = "safetensors"
    ONNX = "ONNX"
    TORCHSCRIPT = "TorchScript"
    TORCH_EXPORT = "torch.export"
    PIPELINE = "a pipeline of models"
    PYTHON = "a Python class"
    PICKLE = "pickle"
    EMPTY = "empty"
    OTHER = "not a model"


_CLAIMS = {".gguf": Kind.GGUF, ".safetensors": Kind.SAFETENSORS, ".onnx": Kind.ONNX}
_CLAIMS[".pt2"] = Kind.TORCH_EXPORT
TORCH = frozenset({Kind.TORCHSCRIPT, Kind.TORCH_EXPORT})
MODELS = TORCH | {Kind.GGUF, Kind.SAFETENSORS, Kind.ONNX, Kind.PIPELINE, Kind.PYTHON}
_MAX_DECLARATION = 1 << 20


FORMATS = "GGUF, safetensors, ONNX, TorchScript or torch.export"


def kind_of(path: Path) -> Kind:
    """Return what a file looks like; reads little of it. A truncated model keeps its kind."""
    with path.open("rb") as file:
        head = file.read(64)
        if not head:
            return Kind.EMPTY
        if head.startswith(b"GGUF"):
            return Kind.GGUF
        if len(head) > 8 and head[8:9] == b"{":
            if 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER:
                return Kind.SAFETENSORS
        if head.startswith(b"PK\x03\x04"):
            return _zip_kind(file)
        if _is_pickle(file, head):
            return Kind.PICKLE
        if _is_onnx(file, head):
            return Kind.ONNX
        return _declared(file)


def claimed(name: str) -> Kind | None:
    """Return what a file's name says it is, None when it says nothing."""
    return _CLAIMS.get(Path(name).suffix.lower())


def check_claim(name: str, kind: Kind) -> None:
    """Raise PICKLE_REFUSED for a pickle, BAD_MODEL_FILE when a name promises something else."""
    said = claimed(name)
    if kind is Kind.PICKLE:
        raise pickle_refused(name)
    if said is not None and kind is not said:
        what = "it is empty" if kind is Kind.EMPTY else f"what is inside is {kind.value}"
        cure = "rename it" if kind in MODELS else "download or export it again"
        raise bad_file(name, f"its name says {said.value} but {what}; {cure}")


def bad_file(name: str, fault: str) -> InvalidArgument:
    """Return BAD_MODEL_FILE. `fault` goes on after `NAME: `."""
    return InvalidArgument("BAD_MODEL_FILE", f"{short(name, 100)[1:-1]}: {fault}.")


def truncated(name: str, needs: int, has: int) -> InvalidArgument:
    """Return BAD_MODEL_FILE for a file that ends too early (sizes in bytes)."""
    return bad_file(
        name, f"truncated: it needs {needs:,} bytes and has {has:,}; download or copy it again"
    )


def pickle_refused(name: str) -> InvalidArgument:
    """Return PICKLE_REFUSED."""
    return InvalidArgument(
        "PICKLE_REFUSED",
        f"{short(name, 100)[1:-1]} is a pickle, and unpickling runs whatever code is in it; "
        "convert it with `llmos-ctl model convert FILE`, which reads it by "
        "torch.load(weights_only=True) in a throw-away process and keeps the tensors as "
        "safetensors.",
    )


def _zip_kind(file: io.BufferedReader) -> Kind:
    """Tell torch.save, TorchScript and torch.export apart by what their zip files hold."""
    names = zips.contents(file)
    if names is None:  # a truncated archive has no directory; its first entry tells
        file.seek(0)
        return Kind.PICKLE if b"data.pkl" in file.read(1 << 12) else Kind.OTHER
    inside = {n.partition("/")[2] or n for n in names}
    if "serialized_exported_program.json" in inside | set(names):
        return Kind.TORCH_EXPORT
    if "archive_format" in inside and any(re.fullmatch(r"models/[^/]+\.json", n) for n in inside):
        return Kind.TORCH_EXPORT
    if {"constants.pkl", "data.pkl"} <= inside and any(n.startswith("code/") for n in inside):
        return Kind.TORCHSCRIPT
    return Kind.PICKLE if any(n.endswith(".pkl") for n in names) else Kind.OTHER


def _declared(file: io.BufferedReader) -> Kind:
    """Tell TOML files that declare a model apart, see docs/models.md."""
    file.seek(0)
    data = file.read(_MAX_DECLARATION + 1)
    if not (b"[[node]]" in data or b"[[outputs]]" in data) or len(data) > _MAX_DECLARATION:
        return Kind.OTHER
    try:
        table = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
        return Kind.OTHER
    if isinstance(table.get("node"), list):
        return Kind.PIPELINE
    return Kind.PYTHON if isinstance(table.get("class"), str) else Kind.OTHER


def _is_pickle(file: io.BufferedReader, head: bytes) -> bool:
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return True
    if head[:1] not in b"(]}cl":
        return False
    file.seek(0)
    seen = set()
    try:
        for opcode, _, _ in pickletools.genops(file.read(_PICKLE_PROBE)):
            seen.add(opcode.name)
    except (ValueError, IndexError, UnicodeDecodeError):
        return False
    return bool(seen & _PICKLE_WORK)


def _is_onnx(file: io.BufferedReader, head: bytes) -> bool:
    """Walk the top-level protobuf fields by their lengths; up to the end or a truncation."""
    if head[0] != 0x08:
        return False
    size = file.seek(0, io.SEEK_END)
    at, seen = 0, set()
    while at < size:
        tag, at = _varint(file, at)
        number, wire = tag >> 3, tag & 7
        if _ONNX_FIELDS.get(number) != wire:
            return False
        length, at = _varint(file, at)
        if length < 0:
            break
        if number == 1 and not 1 <= length <= 100:
            return False
        if wire == 2:
            at += length
        seen.add(number)
    return 7 in seen


def _varint(file: io.BufferedReader, at: int) -> tuple[int, int]:
    file.seek(at)
    value = 0
    for i, byte in enumerate(file.read(10)):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    return -1, at
