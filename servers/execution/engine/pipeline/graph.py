"""`pipeline.toml`: models and steps as nodes of a graph, joined by the names of their values."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos.lib.errors import LLMOSError, Unavailable
from llmos.servers.execution.engine.base import TensorSpec
from llmos.servers.execution.engine.serving.steps import Step, make
from llmos.servers.execution.engine.serving.steps.options import Options

DTYPES = ("bool", "object", "bytes", *(f"{k}{n}" for k in ("int", "uint") for n in (8, 16, 32, 64)))
DTYPES += ("float16", "float32", "float64")


@dataclass(frozen=True)
class ModelNode:
    """A call of a model: its tensor -> the value here, both ways."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Node:
    """One node. takes and gives are names of values; `work` is a model's call or a step."""

    name: str
    takes: Sequence[str]
    gives: Sequence[str]
    work: ModelNode | Step


@dataclass(frozen=True)
class Graph:
    """A whole pipeline. Its nodes stand in an order in which they can run."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    nodes: Sequence[Node]

    @property
    def models(self) -> list[str]:
        """Return the models that it calls."""
        return [n.work.model for n in self.nodes if isinstance(n.work, ModelNode)]


def wrong(what: str) -> LLMOSError:
    """Return the error for a pipeline that cannot be used."""
    return Unavailable(
        "LOAD_FAILED", f"pipeline.toml: {what}; correct it and import the pipeline again."
    )


def read(path: Path, files: Mapping[str, Path]) -> Graph:
    """Read a pipeline. Raises Unavailable LOAD_FAILED, FailedPrecondition MISSING_EXTRA."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise wrong(f"not a TOML file: {exc}") from exc
    if table.pop("version", 1) != 1:
        raise wrong("version is not 1, the only one that is known")
    inputs = [_tensor("inputs", t) for t in _list(table, "inputs")]
    outputs = [_tensor("outputs", t) for t in _list(table, "outputs")]
    nodes = [_node(i, n, files) for i, n in enumerate(_list(table, "node"))]
    if table:
        raise wrong(f"{next(iter(table))!r} is not known")
    if not inputs or not outputs:
        raise wrong("it needs [[inputs]] and [[outputs]]")
    return Graph(inputs, outputs, _ordered(inputs, outputs, nodes))


def _list(table: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = table.pop(name, [])
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise wrong(f"{name} must be a list of tables, written [[{name}]]")
    return [dict(v) for v in value]


def _tensor(side: str, table: dict[str, Any]) -> TensorSpec:
    name, dtype, shape = table.pop("name", ""), table.pop("dtype", ""), table.pop("shape", [-1])
    if not isinstance(name, str) or not name or table:
        raise wrong(f"{side} has tables of name, dtype and shape")
    if dtype not in DTYPES:
        raise wrong(f"{name} has dtype {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= -1 for n in shape):
        raise wrong(f"{name} has a shape that is no list of sizes (-1 = free)")
    raw = dtype == "bytes"
    return TensorSpec(name, "object" if raw else dtype, shape, raw)


def _node(index: int, table: dict[str, Any], files: Mapping[str, Path]) -> Node:
    name = table.pop("name", table.get("model") or table.get("step") or f"node {index + 1}")
    if "model" not in table:
        if "step" not in table:
            raise wrong(f"{name} has neither model nor step")
        step = make(table, Options(table, files, wrong))
        return Node(name, [t.name for t in step.takes], [g.name for g in step.gives], step)
    model = table.pop("model")
    sides = []
    for side in ("inputs", "outputs"):
        value = table.pop(side, {})
        if (
            not isinstance(value, dict)
            or not value
            or not all(isinstance(v, str) for v in value.values())
        ):
            raise wrong(f"{name} needs {side} = {{ tensor = value, ... }}")
        sides.append(value)
    if table or not isinstance(model, str):
        raise wrong(f"{name} has {next(iter(table), model)!r}, which is not known")
    call = ModelNode(model, *sides)
    return Node(name, list(sides[0].values()), list(sides[1].values()), call)


def _ordered(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], nodes: Sequence[Node]
) -> list[Node]:
    """Return the nodes in an order in which they can run."""
    known = {i.name for i in inputs}
    given = [g for n in nodes for g in n.gives] + [i.name for i in inputs]
    if twice := {g for g in given if given.count(g) > 1}:
        raise wrong(f"{min(twice)!r} is given twice")
    ordered: list[Node] = []
    waiting = list(nodes)
    while waiting:
        ready = [n for n in waiting if set(n.takes) <= known]
        if not ready:
            lacks = sorted(set(waiting[0].takes) - known)
            raise wrong(f"{waiting[0].name} takes {lacks[0]!r}, which nothing before it gives")
        ordered += ready
        known |= {g for n in ready for g in n.gives}
        waiting = [n for n in waiting if n not in ready]
    for output in outputs:
        if output.name not in known:
            raise wrong(f"outputs has {output.name!r}, which nothing gives")
    return ordered
