"""What a version itself says about how it is to be run: in its serving.toml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.serving.declared import bad, declared


class Wishes(NamedTuple):
    """`[generate]` precision and `[embed]` pooling ("" = by the model's own files, or the mean)."""

    precision: str = ""
    pooling: str = ""


_SECTIONS = {
    "generate": ("precision", ("auto", "fp32", "bf16", "int8")),
    "embed": ("pooling", ("mean", "last")),
}


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
    found = {}
    for name, (key, values) in _SECTIONS.items():
        section = table.get(name, {})
        if not isinstance(section, dict) or set(section) - {key}:
            raise bad(f"[{name}] has {key} and no more")
        found[key] = section.get(key, "")
        if found[key] not in ("", *values):
            shown = str(found[key])[:60]
            raise bad(f"{name}.{key} is {shown!r}; it is one of {', '.join(values)}")
    return Wishes(**found)
