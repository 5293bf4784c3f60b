"""The manifest: which processes an LLM OS has and in which order they start."""

from __future__ import annotations

import graphlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from llmos.lib.config import read_file, socket_address
from llmos.lib.errors import InvalidArgument

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_KEYS = ("command", "after", "start_timeout", "stop_timeout")


@dataclass(frozen=True)
class ProcessSpec:
    """One process: what to run (a template), after which others, and its time limits (seconds)."""

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 12.0

    def argv(self, config: Path, state_dir: Path) -> list[str]:
        """Return the words to execute."""
        values = {
            "{python}": sys.executable,
            "{config}": str(config),
            "{state_dir}": str(state_dir),
            "{socket}": socket_address(state_dir, self.name),
        }
        words = []
        for word in self.command:
            for key, value in values.items():
                word = word.replace(key, value)
            words.append(word)
        return words


@dataclass(frozen=True)
class Manifest:
    """The processes in order of dependency, and the file that they read their settings from."""

    path: Path
    specs: tuple[ProcessSpec, ...]

    def levels(self) -> Iterator[list[ProcessSpec]]:
        """Yield groups of processes that may start together, each after the groups before it."""
        by_name = {spec.name: spec for spec in self.specs}
        graph = graphlib.TopologicalSorter({s.name: s.after for s in self.specs})
        graph.prepare()
        while graph.is_active():
            names = graph.get_ready()
            yield [by_name[name] for name in sorted(names, key=list(by_name).index)]
            graph.done(*names)


def shipped() -> Path:
    """Return the manifest that is part of the package."""
    return Path(str(resources.files("llmos.servers.init").joinpath("llmos.toml")))


def load(path: Path | None) -> Manifest:
    """Read a manifest, the shipped one when `path` is None.

    A file without processes takes them from the shipped one and gives them its settings. Raises
    InvalidArgument BAD_CONFIG naming file and key.
    """
    path = (path or shipped()).absolute()
    tables = read_file(path)
    processes = tables.pop("processes", None)
    if processes is None:
        processes = read_file(shipped())["processes"]
    if not isinstance(processes, dict) or not processes:
        raise _bad(path, "[processes]", "has no process; name at least one, or leave it out")
    specs = {name: _spec(path, name, table) for name, table in processes.items()}
    for table in tables:
        if table not in specs and table not in ("init", *read_file(shipped())["processes"]):
            raise _bad(path, f"[{table}]", f"is no process; there are init, {', '.join(specs)}")
    for spec in specs.values():
        for other in spec.after:
            if other not in specs:
                where = f"[processes.{spec.name}] after"
                raise _bad(path, where, f"names {other!r}; there are {', '.join(specs)}")
    try:
        order = graphlib.TopologicalSorter({s.name: s.after for s in specs.values()}).static_order()
        return Manifest(path, tuple(specs[name] for name in order))
    except graphlib.CycleError as exc:
        raise _bad(path, "[processes] after", f"is a circle: {' -> '.join(exc.args[1])}") from exc


def _spec(path: Path, name: str, table: Any) -> ProcessSpec:
    where = f"[processes.{name}]"
    if not _NAME.fullmatch(name) or name == "init":
        raise _bad(path, where, "is not a process name: lower-case letters, digits and dashes")
    if not isinstance(table, dict):
        raise _bad(path, where, "must be a table")
    for key in table:
        if key not in _KEYS:
            raise _bad(path, where, f"has no key {key!r}; it has {', '.join(_KEYS)}")
    module = "llmos.kernel" if name == "kernel" else f"llmos.servers.{name}"
    default = ["{python}", "-m", module, "--config", "{config}", "--state-dir", "{state_dir}"]
    command = _words(path, f"{where} command", table.get("command", default))
    if not command:
        raise _bad(path, f"{where} command", "is empty")
    return ProcessSpec(
        name=name,
        command=command,
        after=_words(path, f"{where} after", table.get("after", [])),
        start_timeout_s=_seconds(path, f"{where} start_timeout", table.get("start_timeout", 60)),
        stop_timeout_s=_seconds(path, f"{where} stop_timeout", table.get("stop_timeout", 12)),
    )


def _words(path: Path, where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise _bad(path, where, "must be a list of texts")
    return tuple(value)


def _seconds(path: Path, where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 3600:
        raise _bad(path, where, "must be a number of seconds, over 0 and at most 3600")
    return float(value)


def _bad(path: Path, where: str, what: str) -> InvalidArgument:
    return InvalidArgument("BAD_CONFIG", f"{path}: {where} {what}.")
