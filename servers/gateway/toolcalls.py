"""Finds calls of functions in what a model writes."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(rf"{_OPEN}(.*?)(?:{_CLOSE}|$)", re.DOTALL)


class Call(NamedTuple):
    """A call: name and arguments, JSON as text."""

    name: str
    arguments: str


class ToolText:
    """Splits a text that comes in pieces into what is said and what is called.

    What may be a call is held back until it is known. forced: all of the text is one call.
    """

    def __init__(self, names: frozenset[str], *, forced: bool) -> None:
        """Look for calls of the functions `names`."""
        self._names, self._forced = names, forced
        self._held, self._said = "", ""

    def push(self, text: str) -> str:
        """Take more text; return what is surely said."""
        self._held += text
        if self._forced or (not self._said and self._held.lstrip()[:1] in ("{", "[", "")):
            return ""  # some models write a call as bare JSON
        at = self._held.find(_OPEN)
        if at < 0:
            at = len(self._held) - _overlap(self._held)
        said, self._held = self._held[:at], self._held[at:]
        self._said += said
        return said

    def flush(self) -> tuple[str, list[Call]]:
        """Return what is left of the text, and the calls."""
        held, self._held = self._held, ""
        if not self._said:
            bare = _calls(held, self._names)
            if bare:
                return "", bare
        calls: list[Call] = []

        def take(match: re.Match[str]) -> str:
            found = _calls(match[1], self._names)
            calls.extend(found)
            return "" if found else match[0]

        rest = _CALL.sub(take, held)
        return ("" if calls and not rest.strip() else rest), calls


def _overlap(text: str) -> int:
    """Return how many last characters may begin a call."""
    return next((n for n in range(len(_OPEN) - 1, 0, -1) if text.endswith(_OPEN[:n])), 0)


def _calls(text: str, names: frozenset[str]) -> list[Call]:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return []
    found = []
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, dict) or one.get("name") not in names:
            return []
        arguments = one.get("arguments", one.get("parameters", {}))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        found.append(Call(one["name"], arguments))
    return found
