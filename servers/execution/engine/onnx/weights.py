"""Whether an ONNX file's weights are numbers: read from its wire format, without a copy of them.

Field numbers are those of onnx.proto (ModelProto, GraphProto, TensorProto). ONNX Runtime loads a
model whose weights are NaN and answers NaN; it has no way to ask for them.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.lib.varint import read_varint

_GRAPH, _INITIALIZER = 7, 5
_TYPE, _FLOATS, _NAME, _RAW, _DOUBLES, _EXTERNAL = 2, 4, 8, 9, 10, 13
_KEY, _VALUE = 1, 2
_FLOAT, _HALF, _DOUBLE, _BFLOAT = 1, 10, 11, 16
_DTYPES = {_FLOAT: "<f4", _HALF: "<f2", _DOUBLE: "<f8", _BFLOAT: "<u2"}
_CHUNK = 1 << 20  # bytes looked at together: what is made of them stays in the cache


def not_numbers(files: Mapping[str, Path]) -> str:
    """Return the name of a weight of the graph that holds NaN, or "" when there is none.

    files: the version's; the main one first. Infinities are weights like others: masks hold them.
    What cannot be read is passed over: ONNX Runtime says what is wrong with it.
    """
    main = next(iter(files.values()))
    try:
        return _in_model(_mapped(main), files)
    except (OSError, ValueError, IndexError):
        return ""


def _mapped(path: Path) -> memoryview:
    """Return a file's bytes; it is unmapped when the last view of them is gone."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _in_model(view: memoryview, files: Mapping[str, Path]) -> str:
    for number, graph in _fields(view):
        if number != _GRAPH or not isinstance(graph, memoryview):
            continue
        for inner, tensor in _fields(graph):
            if inner == _INITIALIZER and isinstance(tensor, memoryview):
                if name := _bad(tensor, files):
                    return name
    return ""


def _bad(tensor: memoryview, files: Mapping[str, Path]) -> str:
    kind, name = 0, "?"
    external: dict[int | str, str] = {}
    held: list[tuple[int, memoryview]] = []
    for number, value in _fields(tensor):
        if isinstance(value, int):
            kind = value if number == _TYPE else kind
        elif number == _NAME:
            name = bytes(value).decode(errors="replace")
        elif number == _EXTERNAL:
            pair = {n: bytes(v).decode() for n, v in _fields(value) if not isinstance(v, int)}
            external[pair.get(_KEY, "")] = pair.get(_VALUE, "")
        elif number in (_FLOATS, _DOUBLES):
            held.append((_FLOAT if number == _FLOATS else _DOUBLE, value))
        elif number == _RAW:
            held.append((kind, value))
    if path := files.get(external.get("location", "")):
        begin, size = int(external.get("offset", 0)), int(external.get("length", 0))
        held.append((kind, _mapped(path)[begin : begin + size if size else None]))
    return name if any(_has_nan(value, of) for of, value in held) else ""


def _has_nan(data: memoryview, kind: int) -> bool:
    if kind not in _DTYPES:
        return False
    for begin in range(0, len(data), _CHUNK):
        values: npt.NDArray[Any] = np.frombuffer(data[begin : begin + _CHUNK], _DTYPES[kind])
        bad = (values & 0x7FFF) > 0x7F80 if kind == _BFLOAT else np.isnan(values)
        if bad.any():
            return True
    return False


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of a message's fields; fixed-width ones are passed over."""
    at = 0
    while at < len(view):
        tag, at = read_varint(view, at)
        kind = tag & 7
        if kind == 0:
            value, at = read_varint(view, at)
            yield tag >> 3, value
        elif kind == 2:
            size, at = read_varint(view, at)
            yield tag >> 3, view[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
