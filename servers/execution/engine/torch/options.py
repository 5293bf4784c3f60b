"""What a version itself says about how it is to be run: `[generate]` in its serving.toml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.serving.declared import bad, declared


def wishes(spec: ModelSpec) -> str:
    """Return the precision asked for, by who loads it or the version, else the configuration's.

    Raises Unavailable LOAD_FAILED when the file is broken or names something unknown;
    InvalidArgument BAD_OPTION when what was asked for is wrong.
    """
    return declared(spec.files, spec.changes, _precision) or spec.precision


def _precision(table: Mapping[str, Any]) -> str:
    section = table.get("generate", {})
    known = isinstance(section, dict) and not (set(table) - {"generate"})
    if not known or set(section) - {"precision"}:
        raise bad('a language model may have [instances], and [generate] with precision = "int8"')
    precision = section.get("precision", "")
    if precision not in ("", "auto", "fp32", "bf16", "int8"):
        raise bad(f"generate.precision is {str(precision)[:60]!r}; it is fp32, bf16 or int8")
    return str(precision)
