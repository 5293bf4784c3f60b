"""Words of the command line that need no conversion, without what converts the others.

typer converts with pydantic, whose import costs as much as all the rest of a short command.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any


class _AsItIs:
    """Takes the place of typer's conversion of one parameter until that is needed."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a text or default as it is, or one of a few words, or a path; else ask typer."""
        several = param.multiple or param.nargs == -1
        kind, about = param.type_descriptor.annotation, param.type_descriptor.parameter_info
        if value is None:
            return () if several else None
        if not several and about.parser is None and isinstance(kind, type):
            if type(value) is kind:
                return value
            if issubclass(kind, enum.StrEnum) and value in list(kind):
                return kind(value)
            if kind is Path and not (about.exists or about.resolve_path or about.allow_dash):
                return Path(value)
        param._runtime_param = None  # typer makes its own where there is none
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def quick(params: list[Any]) -> list[Any]:
    """Return the parameters; from now on, typer converts what is given for them only at need."""
    for param in params:
        if getattr(param, "_runtime_param", param) is None:
            param._runtime_param = _AsItIs()
    return params


def quicken(command: Any, ctx: Any) -> None:
    """Do so for a command and those below it; `ctx`, of any command, names the help options."""
    quick(command.get_params(ctx))
    for below in getattr(command, "commands", {}).values():
        quicken(below, ctx)
