"""`python.toml`: which class of a version's files is the model, and where and how it runs."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.lib.errors import FailedPrecondition, Unavailable
from llmos.servers.execution.engine.base import ModelSpec, TensorSpec

FILE = "python.toml"
DTYPES = ("bool", "object", "bytes", *(f"{k}{n}" for k in ("int", "uint") for n in (8, 16, 32, 64)))
DTYPES += ("float16", "float32", "float64")
_CLASS = re.compile(r"([A-Za-z_]\w*):([A-Za-z_]\w*)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEYS = {"version", "class", "environment", "memory_mb", "stall_s", "call_s", "inputs", "outputs"}


@dataclass(frozen=True)
class Declaration:
    """The whole file.

    target: `module:class`. environment: a name, an absolute path, or "" for the environment of
    LLM OS. memory_mb: what the model may allocate. stall_s: it is ended when it has a call and uses
    no CPU for so long; call_s: and when a call takes longer than this.
    """

    target: str
    environment: str
    memory_mb: int
    stall_s: float
    call_s: float
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def wrong(what: str) -> Unavailable:
    """Return the error for a declaration that cannot be used."""
    return Unavailable("LOAD_FAILED", f"{FILE}: {what}; correct it and import the model again.")


def read(spec: ModelSpec) -> Declaration:
    """Return what a version declares. Raises Unavailable LOAD_FAILED naming the key."""
    try:
        table = tomllib.loads(spec.files[FILE].read_text(encoding="utf-8"))
    except (KeyError, OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise wrong(f"not a TOML file: {exc}") from exc
    return parse(table, spec.files)


def parse(table: Mapping[str, Any], files: Mapping[str, Path]) -> Declaration:
    """Return what a parsed file says, for a version with these files. Raises as `read`."""
    if unknown := set(table) - _KEYS:
        raise wrong(f"{min(unknown)[:60]!r} is not known; there are {', '.join(sorted(_KEYS))}")
    if table.get("version", 1) != 1:
        raise wrong("version is not 1, the only one that is known")
    target, environment = table.get("class"), table.get("environment", "")
    match = _CLASS.fullmatch(target) if isinstance(target, str) else None
    if match is None:
        raise wrong(f"class is {str(target)[:60]!r}; it must be written module:Class")
    if f"{match[1]}.py" not in files:
        raise wrong(f"class is in {match[1]}.py, which is not among the version's files")
    if not isinstance(environment, str):
        raise wrong("environment must be a text")
    if not (environment in ("", ".") or environment[0] == "/" or _NAME.fullmatch(environment)):
        raise wrong(f"environment {environment[:60]!r} is neither a name nor an absolute path")
    return Declaration(
        target=match[0],
        environment=environment,
        memory_mb=int(_number(table, "memory_mb", 512, 1, 1 << 24)),
        stall_s=_number(table, "stall_s", 10, 0.1, 3600),
        call_s=_number(table, "call_s", 300, 0.1, 86400),
        inputs=_tensors(table, "inputs"),
        outputs=_tensors(table, "outputs"),
    )


def interpreter(spec: ModelSpec, declared: Declaration) -> Path:
    """Return the Python of the declared environment. Raises FailedPrecondition NO_ENVIRONMENT."""
    name = declared.environment
    if not name:
        return Path(sys.executable)
    folder = Path(name) if name[0] == "/" else Path(spec.state_dir) / "environments" / name
    path = folder / "bin" / "python"
    if not os.access(path, os.X_OK):
        raise FailedPrecondition(
            "NO_ENVIRONMENT",
            f"{spec.ref} runs in the environment {name!r}, and there is no {path}; make it: python "
            f"-m venv {folder} && {folder}/bin/pip install numpy.",
        )
    return path


def _number(
    table: Mapping[str, Any], name: str, default: float, least: float, most: float
) -> float:
    value = table.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise wrong(f"{name} must be a number from {least:g} to {most:g}")
    return float(value)


def _tensors(table: Mapping[str, Any], side: str) -> tuple[TensorSpec, ...]:
    given = table.get(side)
    if not isinstance(given, list) or not given:
        raise wrong(f"[[{side}]] is missing: a table of name, dtype and shape for each tensor")
    found: dict[str, TensorSpec] = {}
    for one in given:
        name = one.get("name") if isinstance(one, dict) else None
        if not isinstance(name, str) or not name or set(one) - {"name", "dtype", "shape"}:
            raise wrong(f"[[{side}]] has tables of name, dtype and shape")
        dtype, shape = one.get("dtype"), one.get("shape", [-1])
        if dtype not in DTYPES:
            raise wrong(f"{name[:60]} has no dtype of {', '.join(DTYPES)}")
        if not isinstance(shape, list) or not all(_dimension(n) for n in shape):
            raise wrong(f"{name[:60]} has a shape that is not a list of sizes (-1 = free)")
        raw = dtype == "bytes"
        found[name] = TensorSpec(name, "object" if raw else dtype, tuple(shape), raw)
    return tuple(found.values())


def _dimension(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= -1
