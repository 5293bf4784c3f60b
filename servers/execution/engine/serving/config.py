"""`serving.toml`: how a version wants to be served, written beside its model file.

Everything has a default, so most models need none. Keys that are not known are refused, so that a
slip is not silently without effect. Described for users in docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.serving.declared import FILE, bad, declared

__all__ = ["FILE", "Serving", "bad", "parse", "read"]

T = TypeVar("T")


@dataclass(frozen=True)
class Batching:
    """Requests are put together along their first axis.

    max: rows of a batch. delay_ms: how long the oldest request waits for company. preferred: sizes
    that are run at once. queue: rows that may wait. pad: inputs whose second axis may differ
    between requests, with the value that fills the shorter ones up; waste: the share of a batch
    that may be such filling.
    """

    max: int = 32
    delay_ms: float = 0.0
    preferred: tuple[int, ...] = ()
    queue: int = 4096
    pad: Mapping[str, float] = field(default_factory=dict)
    waste: float = 0.15


@dataclass(frozen=True)
class StateTensor:
    """One tensor of a model's state: goes into `input`, comes out of `output`.

    shape: without its batch axis, which is `axis`. It starts as zeros.
    """

    input: str
    output: str
    shape: tuple[int, ...]
    axis: int = 0
    dtype: str = "float32"


@dataclass(frozen=True)
class SequenceConfig:
    """The model keeps state between the calls of a sequence.

    carry: inputs whose last so many elements (of the last axis) are put before the next call's.
    """

    state: tuple[StateTensor, ...] = ()
    carry: Mapping[str, int] = field(default_factory=dict)
    idle_s: float = 60.0
    max: int = 256


@dataclass(frozen=True)
class StreamConfig:
    """One request is answered many times: `input` is cut into pieces of `chunk` elements."""

    input: str
    chunk: int


@dataclass(frozen=True)
class CacheConfig:
    """Answers are kept, for each tenant on its own."""

    mb: float = 64.0
    ttl_s: float = 600.0


@dataclass(frozen=True)
class Runtime:
    """threads: 0 = those of the worker. warm_up: batch sizes that are run before the first call.

    sizes: what free dimensions other than the batch are while warming up.
    """

    threads: int = 0
    spin: bool = True
    warm_up: tuple[int, ...] = (1,)
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorConfig:
    """A tensor of a model whose file does not say what it takes or gives (TorchScript)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Serving:
    """The whole file; None where a section is not there."""

    batching: Batching | None = None
    sequence: SequenceConfig | None = None
    stream: StreamConfig | None = None
    cache: CacheConfig | None = None
    runtime: Runtime = Runtime()
    constants: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[TensorConfig, ...] = ()
    outputs: tuple[TensorConfig, ...] = ()
    before: tuple[Mapping[str, Any], ...] = ()
    after: tuple[Mapping[str, Any], ...] = ()


def read(files: Mapping[str, Path], changes: Mapping[str, str] | None = None) -> Serving:
    """Return what a version declares, after `changes` (see `declared`); all defaults without it.

    Raises Unavailable LOAD_FAILED naming the key that is wrong; InvalidArgument BAD_OPTION.
    """
    if "generate.precision" in (changes or {}):
        raise InvalidArgument(
            "BAD_OPTION", "A precision is chosen for language models only; this is none."
        )
    return declared(files, changes or {}, parse)


def parse(table: Mapping[str, Any]) -> Serving:
    """Return what a parsed file says. Raises as `read`."""
    rest = dict(table)
    if rest.pop("version", 1) != 1:
        raise bad("version is not 1, the only one that is known")
    sections: dict[str, Any] = {}
    for name, kind in (
        ("batching", Batching),
        ("stream", StreamConfig),
        ("cache", CacheConfig),
        ("runtime", Runtime),
    ):
        if name in rest:
            sections[name] = _section(kind, name, rest.pop(name))
    if "sequence" in rest:
        given = dict(_table("sequence", rest.pop("sequence")))
        states = [_section(StateTensor, "sequence.state", s) for s in _list("state", given)]
        sections["sequence"] = _section(SequenceConfig, "sequence", given, state=tuple(states))
    for name in ("inputs", "outputs"):
        sections[name] = tuple(_section(TensorConfig, name, t) for t in _list(name, rest))
    for name in ("before", "after"):
        sections[name] = tuple(_table(name, step) for step in _list(name, rest))
    sections["constants"] = _table("constants", rest.pop("constants", {}))
    if rest:
        raise bad(f"{next(iter(rest))!r} is not known")
    serving = Serving(**sections)
    _check(serving)
    return serving


def _check(serving: Serving) -> None:
    batching, sequence = serving.batching, serving.sequence
    if batching is not None:
        if not 1 <= batching.max <= 65_536 or batching.queue < batching.max:
            raise bad("batching.max must be 1 to 65,536, and batching.queue no less")
        if not 0 <= batching.delay_ms <= 10_000 or not 0 <= batching.waste < 1:
            raise bad("batching.delay_ms must be 0 to 10,000 and batching.waste 0 to under 1")
        if any(not 1 <= size <= batching.max for size in batching.preferred):
            raise bad("batching.preferred has a size that is not 1 to batching.max")
    if sequence is not None and (sequence.idle_s <= 0 or sequence.max < 1):
        raise bad("sequence.idle_s and sequence.max must be over 0")
    if serving.stream is not None and serving.stream.chunk < 1:
        raise bad("stream.chunk must be over 0")
    if serving.cache is not None and (serving.cache.mb <= 0 or serving.cache.ttl_s <= 0):
        raise bad("cache.mb and cache.ttl_s must be over 0")


def _list(name: str, table: dict[str, Any]) -> list[Any]:
    value = table.pop(name, [])
    if not isinstance(value, list):
        raise bad(f"{name} must be a list of tables, written [[{name}]]")
    return value


def _table(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad(f"{name} must be a table")
    return dict(value)


def _section(kind: type[T], name: str, value: Any, **made: Any) -> T:
    """Return a dataclass from a table, with the types that its fields have."""
    table = _table(name, value)
    hints = get_type_hints(kind)
    given: dict[str, Any] = dict(made)
    for one in fields(kind):  # type: ignore[arg-type]
        if one.name in made:
            continue
        if one.name in table:
            given[one.name] = _value(f"{name}.{one.name}", hints[one.name], table.pop(one.name))
        elif one.default is MISSING and one.default_factory is MISSING:
            raise bad(f"{name}.{one.name} is missing")
    if table:
        known = ", ".join(f.name for f in fields(kind))  # type: ignore[arg-type]
        raise bad(f"{name}.{next(iter(table))} is not known; {name} has {known}")
    return kind(**given)


def _value(name: str, wanted: Any, value: Any) -> Any:
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if wanted is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if wanted in (str, bool) and isinstance(value, wanted):
        return value
    if wanted == tuple[int, ...] and isinstance(value, list):
        if all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            return tuple(value)
    if isinstance(value, dict) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in value.values()
    ):
        if wanted == Mapping[str, float] or all(isinstance(v, int) for v in value.values()):
            return value
    raise bad(f"{name} has the wrong type: {str(value)[:60]!r}")
