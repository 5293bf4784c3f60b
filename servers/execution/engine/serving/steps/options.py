"""Reads the table that declares a step, with errors that name the key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmos.lib.errors import InvalidArgument, LLMOSError


class Options:
    """One step's table. Every key must be read before `end`."""

    def __init__(
        self,
        table: Mapping[str, Any],
        files: Mapping[str, Path],
        error: Callable[[str], LLMOSError],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Read from `table`; `files` are the version's; metadata: what the model file says."""
        self._rest = dict(table)
        self._error = error
        self.name = str(table.get("step", "?"))
        self.files = files
        self.metadata = metadata or {}

    def bad(self, what: str) -> LLMOSError:
        """Return the error for a wrong declaration."""
        return self._error(f"step {self.name}: {what}")

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text."""
        return str(self._get(key, str, default))

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth value."""
        return bool(self._get(key, bool, default))

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a whole number."""
        return int(self._get(key, int, default))

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number."""
        return float(self._get(key, (int, float), default))

    def choice(self, key: str, *known: str) -> str:
        """Return one of the texts that are known; the first is the default."""
        value = self.text(key, known[0])
        if value not in known:
            raise self.bad(f"{key} is {value!r}; it must be one of {', '.join(known)}")
        return value

    def numbers(self, key: str, default: list[float]) -> list[float]:
        """Return a list of numbers."""
        value = self._get(key, list, default)
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
            raise self.bad(f"{key} must be a list of numbers")
        return [float(v) for v in value]

    def lines(self, key: str) -> list[str]:
        """Return texts: a list, or the lines of a file of the version that is named."""
        value = self._rest.pop(key, [])
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return list(value)
        if not isinstance(value, str) or value not in self.files:
            raise self.bad(f"{key} must be a list of texts, or the name of a file of the version")
        try:
            text = self.files[value].read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise self.bad(f"{value} cannot be read as text: {exc}") from exc
        return text.removesuffix("\n").split("\n")

    def end(self) -> None:
        """Raise for a key that nothing has read."""
        self._rest.pop("step", None)
        if self._rest:
            raise self.bad(f"{next(iter(self._rest))!r} is not known")

    def _get(self, key: str, kind: Any, default: Any) -> Any:
        value = self._rest.pop(key, default)
        if value is None:
            raise self.bad(f"{key} is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.bad(f"{key} has the wrong type: {str(value)[:60]!r}")
        return value


def refuse(what: str) -> InvalidArgument:
    """Return the error for an input that cannot be read; a whole sentence."""
    return InvalidArgument("BAD_INPUT", what)
