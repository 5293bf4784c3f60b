"""GGUF: walks header, metadata and tensor table with bounds, before anything trusts them.

The gguf package's own reader is not used here: it takes seconds for a large vocabulary and follows
lengths without checking them. Its tables of types and block sizes are.
"""

from __future__ import annotations

import itertools
import mmap
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.extras import need
from llmos.servers.storage.formats.kinds import bad_file, truncated
from llmos.servers.storage.formats.tokenizer import bounded
from llmos.servers.storage.model import Description, Format, Task

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"} | {
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_MIN_PAIR, _MIN_TENSOR = 13, 24  # bytes of the smallest metadata pair and tensor entry
_MAX_NAME = 1024
_MAX_DIMS = 4
_MAX_ITEMS = 1 << 24  # strings in an array; the largest vocabularies have a fiftieth


class _Walk:
    """A position in the file; every step checks that the file goes on that far."""

    def __init__(self, name: str, data: mmap.mmap) -> None:
        self.name, self.data, self.at, self.size = name, data, 0, len(data)

    def skip(self, count: int) -> int:
        start = self.at
        if start + count > self.size:
            raise truncated(self.name, start + count, self.size)
        self.at = start + count
        return start

    def number(self, form: str) -> Any:
        start = self.skip(struct.calcsize(form))
        return struct.unpack_from(form, self.data, start)[0]

    def text(self) -> str:
        length = self.number("<Q")
        start = self.skip(length)
        return self.data[start : start + length].decode("utf-8", "replace")

    def fault(self, what: str) -> InvalidArgument:
        return bad_file(self.name, f"damaged GGUF: {what}; download or convert it again")

    def value(self, kind: int, depth: int = 0) -> Any:
        """Return a value; an array is walked over and returned as its length."""
        if form := _SCALARS.get(kind):
            return self.number(form)
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth > 2:
            raise self.fault(f"unknown metadata type {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in (_STRING, _ARRAY) and count > _MAX_ITEMS:
            raise self.fault(f"an array claims {count} items")
        if form := _SCALARS.get(inner):
            self.skip(struct.calcsize(form) * count)
        elif inner == _STRING:
            for _ in range(count):
                self.skip(self.number("<Q"))
        else:
            for _ in range(count):
                self.value(inner, depth + 1)
        return count


def describe(name: str, path: Path) -> Description:
    """Check a GGUF file and return what it says of itself. Raises BAD_MODEL_FILE."""
    with path.open("rb") as file:
        if path.stat().st_size < 24:
            raise truncated(name, 24, path.stat().st_size)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk = _Walk(name, data)
            meta, tensors, _ = _header(walk)
            return _describe(meta, tensors)


def tensor_ranges(name: str, path: Path) -> list[tuple[int, int]]:
    """Return (first byte, bytes) of each tensor, in order. Raises BAD_MODEL_FILE."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        walk = _Walk(name, data)
        return _header(walk)[2]


def title(path: Path) -> str:
    """Return `general.name` of a sound GGUF file, else ""."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return str(_metadata(_Walk(path.name, data))[0].get("general.name", ""))
    except (InvalidArgument, ValueError):
        return ""


def _metadata(walk: _Walk) -> tuple[dict[str, Any], int]:
    if walk.data[walk.skip(4) : walk.at] != b"GGUF":
        raise walk.fault("it does not begin with GGUF")
    version = walk.number("<I")
    if version & 0xFFFF == 0:
        raise bad_file(walk.name, "big-endian GGUF is not supported; convert it to little-endian")
    if version not in (2, 3):
        raise bad_file(walk.name, f"GGUF version {version} is not supported; convert it to 3")
    tensors, pairs = walk.number("<Q"), walk.number("<Q")
    if max(tensors * _MIN_TENSOR, pairs * _MIN_PAIR) > walk.size:
        raise walk.fault(f"it claims {tensors} tensors and {pairs} metadata pairs")
    meta: dict[str, Any] = {}
    for _ in range(pairs):
        key = walk.text()
        if key in meta or len(key) > 65535:
            raise walk.fault("a metadata key is there twice or too long")
        meta[key] = walk.value(walk.number("<I"))
    return meta, tensors


def _header(
    walk: _Walk,
) -> tuple[dict[str, Any], dict[str, tuple[str, int, int]], list[tuple[int, int]]]:
    """Return metadata, {tensor: (type, elements, bytes)} and where their bytes are.

    Checks that all lie inside.
    """
    gguf = need("gguf")
    meta, count = _metadata(walk)
    if meta.get("split.count", 0) not in (0, 1):
        raise bad_file(
            walk.name,
            "one part of a split GGUF; merge the parts first with llama-gguf-split --merge",
        )
    align = meta.get("general.alignment", 32)
    if not isinstance(align, int) or not 8 <= align <= 1 << 20 or align & (align - 1):
        raise walk.fault(f"alignment {align}")
    tensors: dict[str, tuple[str, int, int]] = {}
    ranges: list[tuple[int, int]] = []
    for _ in range(count):
        tensor = walk.text()
        dims = walk.number("<I")
        if tensor in tensors or len(tensor) > _MAX_NAME or dims > _MAX_DIMS:
            raise walk.fault("a tensor is there twice, or its name or shape is too long")
        shape = [walk.number("<Q") for _ in range(dims)]
        kind, offset = walk.number("<I"), walk.number("<Q")
        if kind not in gguf.GGML_QUANT_SIZES:
            raise bad_file(
                walk.name,
                f"tensor type {kind} is not known; it is damaged, or newer than the gguf package: "
                "pip install -U gguf",
            )
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        elements = 1
        for dim in shape:
            elements *= dim
        if not 0 < elements < 1 << 62 or (shape or [1])[0] % block or offset % align:
            raise walk.fault(f"tensor {tensor[:80]} has an impossible shape or place")
        size = elements // block * block_bytes
        ranges.append((offset, offset + size))
        tensors[tensor] = (gguf.GGMLQuantizationType(kind).name, elements, size)
    if not tensors:
        raise bad_file(walk.name, "no tensors inside; it is a vocabulary only")
    start = (walk.at + align - 1) // align * align
    ranges.sort()
    for (_, end), (begin, _) in itertools.pairwise(ranges):
        if begin < end:
            raise walk.fault("tensors overlap")
    if start + ranges[-1][1] > walk.size:
        raise truncated(walk.name, start + ranges[-1][1], walk.size)
    return meta, tensors, [(start + begin, end - begin) for begin, end in ranges]


def _describe(meta: dict[str, Any], tensors: dict[str, tuple[str, int, int]]) -> Description:
    architecture = str(meta.get("general.architecture", ""))[:64]
    by_type: Counter[str] = Counter()
    for kind, _, size in tensors.values():
        by_type[kind] += size
    context = meta.get(f"{architecture}.context_length", 0)
    return Description(
        format=Format.GGUF,
        task=_task(architecture, meta),
        architecture=architecture,
        parameters=sum(elements for _, elements, _ in tensors.values()),
        dtype=_file_type(meta.get("general.file_type")) or by_type.most_common(1)[0][0],
        context_length=context if isinstance(context, int) and 0 < context < 1 << 31 else 0,
        license=str(meta.get("general.license", ""))[:64],
        tokenizer=_tokenizer(meta),
        chat_template=bounded(str(meta.get("tokenizer.chat_template", ""))),
    )


def _task(architecture: str, meta: dict[str, Any]) -> Task:
    if meta.get("general.type", "model") != "model" or "tokenizer.ggml.model" not in meta:
        return Task.UNSPECIFIED
    if meta.get(f"{architecture}.attention.causal", True) is False:
        return Task.EMBED
    if f"{architecture}.pooling_type" in meta and "bert" in architecture:
        return Task.EMBED
    return Task.GENERATE


def _tokenizer(meta: dict[str, Any]) -> str:
    """Return the algorithm as tokenizer libraries call it."""
    said = str(meta.get("tokenizer.ggml.model", ""))[:32]
    known = {"gpt2": "BPE", "llama": "SentencePiece", "bert": "WordPiece", "t5": "Unigram"}
    return known.get(said, said)


def _file_type(number: object) -> str:
    """Return e.g. `Q4_1` for general.file_type 3, "" when it is absent or not known."""
    known = {t.value: t.name for t in need("gguf").LlamaFileType}
    name = known.get(number, "")
    return "" if name == "GUESSED" else name.removeprefix("MOSTLY_").removeprefix("ALL_")
