"""What a pickle would do, told from its opcodes; nothing is ever unpickled here.

TorchScript and torch.export archives hold pickles of their own. torch.jit.load reads them with a
C++ unpickler that knows a fixed list of globals; torch.export.load falls back to Python's, which
runs whatever it is told. So both are let in only while every global they name is on a list.
"""

from __future__ import annotations

import pickletools
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.formats.kinds import bad_file
from llmos.servers.storage.names import short

MAX_PICKLE = 16 << 20  # bytes; weights are beside the pickle, never in it
# Storage class -> (dtype, bytes of an element).
STORAGES = {
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "DoubleStorage": ("F64", 8),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("U8", 1),
    "ShortStorage": ("I16", 2),
    "IntStorage": ("I32", 4),
    "LongStorage": ("I64", 8),
    "BoolStorage": ("BOOL", 1),
    "QInt8Storage": ("int8", 1),
    "QUInt8Storage": ("int8", 1),
    "QInt32Storage": ("I32", 4),
    "ComplexFloatStorage": ("C64", 8),
    "ComplexDoubleStorage": ("C128", 16),
}
_TENSORS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *(("torch", name) for name in STORAGES),
}
# Read by torch.jit.load's own unpickler (torch/csrc/jit/serialization/unpickler.cpp).
_SCRIPT = _TENSORS | {
    ("torch._utils", "_rebuild_qtensor"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch", "device"),
    ("torch", "per_tensor_affine"),
    ("torch", "per_channel_affine"),
    *(
        ("torch.jit._pickle", name)
        for name in (
            "build_intlist",
            "build_doublelist",
            "build_boollist",
            "build_tensorlist",
            "build_tensor_from_id",
            "restore_type_tag",
        )
    ),
}
# What torch.load(weights_only=True) takes too, of what sample inputs consist of.
_EXPORT = _TENSORS | {
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    *(("torch", t) for t in ("float32", "float16", "bfloat16", "float64", "int64", "int32")),
}
_INTS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG"}
_PUTS = {"BINPUT", "LONG_BINPUT", "PUT"}
_GETS = {"BINGET", "LONG_BINGET", "GET"}
_UNKNOWN = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}  # torch writes none of these

Allowed = Callable[[str, str], bool]


@dataclass
class Found:
    """What a pickle names. storages: {key: (dtype, elements, bytes)}."""

    classes: list[str] = field(default_factory=list)
    storages: dict[str, tuple[str, int, int]] = field(default_factory=dict)

    def elements(self) -> Counter[str]:
        """Return {dtype: elements}."""
        counts: Counter[str] = Counter()
        for dtype, count, _ in self.storages.values():
            counts[dtype] += count
        return counts


def script(module: str, name: str) -> bool:
    """Return whether torch.jit.load's unpickler makes nothing but data of this global."""
    own = module == "__torch__" or module.startswith("__torch__.")
    return own or (module, name) in _SCRIPT


def export(module: str, name: str) -> bool:
    """Return whether this global stands for tensors, for Python's unpickler."""
    return (module, name) in _EXPORT


def scan(archive: str, entry: str, data: bytes, allowed: Allowed) -> Found:
    """Read the opcodes of a pickle. Raises PICKLE_REFUSED, BAD_MODEL_FILE when it is damaged."""
    found = Found()
    memo: dict[int, str] = {}
    last = storage = text = ""
    number = 0
    ended = False
    try:
        argument: Any
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            ended = name == "STOP"
            if name in _UNKNOWN:
                raise refused(archive, entry, f"it uses {name}")
            if name == "GLOBAL":
                module, _, what = str(argument).partition(" ")
                if not allowed(module, what):
                    raise refused(archive, entry, f"it names {short(f'{module}.{what}')}")
                found.classes.append(what)
                last = what
            elif name in _PUTS:
                memo[argument], last = last, ""
            elif name in _GETS:
                last = memo.get(argument, "")
            elif name in _INTS:
                number = argument
            elif name == "BINPERSID":
                _storage(found, storage, text, number)
            else:
                last = argument if isinstance(argument, str) else ""
            if last in STORAGES:
                storage = last
            elif last.isdigit():
                text = last
    except (ValueError, IndexError, struct.error, OverflowError) as exc:
        raise bad_file(archive, f"its {short(entry)[1:-1]} is damaged; download it again") from exc
    if not ended:
        raise bad_file(archive, f"its {short(entry)[1:-1]} is truncated; download it again")
    return found


def _storage(found: Found, storage: str, key: str, elements: int) -> None:
    """Note ('storage', class, key, device, elements), as torch writes persistent ids."""
    if storage in STORAGES and elements >= 0:
        dtype, size = STORAGES[storage]
        found.storages[key] = (dtype, elements, elements * size)


def refused(archive: str, entry: str, why: str) -> InvalidArgument:
    """Return PICKLE_REFUSED for an archive with a pickle that does more than hold tensors."""
    return InvalidArgument(
        "PICKLE_REFUSED",
        f"{short(archive, 100)[1:-1]} holds a pickle ({short(entry)[1:-1]}) that is more than "
        f"tensors: {why}, which would run code when it is loaded; export the model again from "
        "sources that you trust.",
    )
