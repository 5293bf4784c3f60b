"""What a version itself says about how it is to be run: in its serving.toml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.serving.declared import bad, declared


class Wishes(NamedTuple):
    """`[generate]` precision, draft and speculate, `[embed]` pooling; "" and 0 = the default."""

    precision: str = ""
    pooling: str = ""
    draft: str = ""  # model reference; who loads the version gets its files (see ModelSpec)
    speculate: int = 0  # tokens that are guessed for requests that do not say


NO_WISHES = Wishes()
MAX_SPECULATE = 16
_CHOICES = {
    "precision": ("auto", "fp32", "bf16", "int8", "int4"),
    "pooling": ("mean", "last"),
}
_SECTIONS = {"generate": ("precision", "draft", "speculate"), "embed": ("pooling",)}


def wishes(spec: ModelSpec) -> Wishes:
    """Return what is asked for, by who loads it or the version, else the configuration's.

    Raises Unavailable LOAD_FAILED when the file is broken or names something unknown;
    InvalidArgument BAD_OPTION when what was asked for is wrong.
    """
    found = declared(spec.files, spec.changes, _parse)
    return found._replace(precision=found.precision or spec.precision)


def _parse(table: Mapping[str, Any]) -> Wishes:
    if unknown := set(table) - set(_SECTIONS):
        raise bad(
            f"{min(unknown)[:60]!r} is not known; a language model may have [instances], "
            "[generate] and [embed]"
        )
    found: dict[str, Any] = {}
    for name, keys in _SECTIONS.items():
        section = table.get(name, {})
        if not isinstance(section, dict) or set(section) - set(keys):
            raise bad(f"[{name}] has {', '.join(keys)} and no more")
        for key, value in section.items():
            found[key] = _checked(f"{name}.{key}", value, _CHOICES.get(key))
    return Wishes(**found)


def _checked(name: str, value: Any, choices: tuple[str, ...] | None) -> Any:
    shown = str(value)[:60]
    if choices is not None and value not in ("", *choices):
        raise bad(f"{name} is {shown!r}; it is one of {', '.join(choices)}")
    if name == "generate.draft" and not isinstance(value, str):
        raise bad(f"{name} is {shown!r}; it is a model reference")
    if name == "generate.speculate" and (type(value) is not int or not 0 <= value <= MAX_SPECULATE):
        raise bad(f"{name} is {shown!r}; it is 0 to {MAX_SPECULATE}")
    return value
