"""What a version itself says about how it is to be run: `[generate]` in its serving.toml."""

from __future__ import annotations

import tomllib

from llmos.servers.execution.engine.base import ModelSpec
from llmos.servers.execution.engine.torch.gguf_header import damaged

_FILE = "serving.toml"


def wishes(spec: ModelSpec) -> str:
    """Return the precision that the version asks for, else the spec's ("" = the default).

    Raises Unavailable LOAD_FAILED when the file is broken or names something unknown.
    """
    path = spec.files.get(_FILE)
    if path is None:
        return spec.precision
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise damaged(path, f"it is no valid TOML ({error})") from error
    section = table.get("generate", {})
    unknown = (set(table) - {"generate"}) | (set(section) - {"precision"})
    if unknown or not isinstance(precision := section.get("precision", ""), str):
        raise damaged(
            path, 'a language model\'s may have [generate] with precision = "int8" and no more'
        )
    return precision or spec.precision
