"""`serving.toml` as a table, with what was asked for otherwise when the version was loaded.

Also read by the manager, so it needs no more than the standard library.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llmos.lib.errors import InvalidArgument, Unavailable

FILE = "serving.toml"
MAX_INSTANCES = 64
_HEAD, _CURE = f"{FILE}: ", "; correct it and import the model again."
T = TypeVar("T")


@dataclass(frozen=True)
class Instances:
    """`[instances]`: how many workers run a version, and how; 0 and () = by the configuration.

    devices: the workers take them in turn. stateful: it keeps state between the calls of a
    sequence, so one worker is all it may have.
    """

    count: int = 1
    threads: int = 0
    devices: tuple[str, ...] = ()
    stateful: bool = False


def bad(what: str) -> Unavailable:
    """Return the error for a declaration that cannot be used."""
    return Unavailable("LOAD_FAILED", f"{_HEAD}{what}{_CURE}")


def declared(
    files: Mapping[str, Path],
    changes: Mapping[str, str],
    parse: Callable[[dict[str, Any]], T],
) -> T:
    """Return what `parse` makes of a version's table, without [instances], after `changes`.

    changes: dotted names to TOML values. Raises Unavailable LOAD_FAILED when the file is wrong;
    InvalidArgument BAD_OPTION when a change is.
    """
    own = _read(files)
    made = parse({k: v for k, v in own.items() if k != "instances"})
    if not changes:
        return made
    try:
        table = changed(own, changes)
        return parse({k: v for k, v in table.items() if k != "instances"})
    except Unavailable as exc:
        what = exc.message.removeprefix(_HEAD).removesuffix(_CURE)
        asked = ", ".join(f"{name} = {value}" for name, value in sorted(changes.items()))
        raise InvalidArgument(
            "BAD_OPTION", f"It cannot be loaded with {asked[:200]}: {what}."
        ) from exc


def instances(files: Mapping[str, Path], changes: Mapping[str, str]) -> Instances:
    """Return what a version says about its workers, after `changes`. Raises as `declared`."""
    found = _instances(_read(files))
    try:
        return _instances(changed(_read(files), changes)) if changes else found
    except Unavailable as exc:
        what = exc.message.removeprefix(_HEAD).removesuffix(_CURE)
        raise InvalidArgument("BAD_OPTION", f"It cannot be loaded so: {what}.") from exc


def draft(files: Mapping[str, Path], changes: Mapping[str, str]) -> str:
    """Return the model that is to guess for a version, `[generate] draft`; "" = none.

    What is no text is left to the engine to refuse. Raises as `declared`.
    """
    section = changed(_read(files), changes).get("generate")
    name = section.get("draft", "") if isinstance(section, dict) else ""
    return name if isinstance(name, str) else ""


def changed(table: Mapping[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    """Return a table with other values. Raises InvalidArgument BAD_OPTION naming the change."""
    made = dict(table)
    for name, text in changes.items():
        *parents, last = name.split(".")
        at = made
        for parent in parents:
            below = at.get(parent, {})
            if not isinstance(below, dict):
                raise InvalidArgument("BAD_OPTION", f"{name[:60]!r}: {parent} is no table.")
            at[parent] = at = dict(below)
        at[last] = _value(name, text)
    return made


def _value(name: str, text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        table = {}
    if set(table) != {"value"}:
        raise InvalidArgument(
            "BAD_OPTION",
            f'{name[:60]}: {text[:60]!r} is no TOML value; write e.g. 8, 2.5, true, "int8".',
        )
    return table["value"]


def _read(files: Mapping[str, Path]) -> dict[str, Any]:
    if FILE not in files:
        return {}
    try:
        return tomllib.loads(files[FILE].read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise bad(f"not a TOML file: {exc}") from exc


def _instances(table: Mapping[str, Any]) -> Instances:
    section = table.get("instances", {})
    if not isinstance(section, dict):
        raise bad("instances must be a table")
    if unknown := set(section) - {"count", "threads", "devices"}:
        raise bad(f"instances.{min(unknown)} is not known; it has count, threads and devices")
    count, threads = section.get("count", 1), section.get("threads", 0)
    if type(count) is not int or not 1 <= count <= MAX_INSTANCES:
        raise bad(f"instances.count must be 1 to {MAX_INSTANCES}")
    if count > 1 and "sequence" in table:
        raise bad("instances.count must be 1, as calls of a sequence have to meet the same worker")
    if type(threads) is not int or threads < 0:
        raise bad("instances.threads must be 0 or more")
    devices = section.get("devices", [])
    if not isinstance(devices, list) or not all(isinstance(d, str) and d for d in devices):
        raise bad("instances.devices must be a list of names")
    return Instances(count, threads, tuple(devices), "sequence" in table)
