"""Structured logs: one JSON object a line on stderr, with the id of the call being handled."""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import time
from collections.abc import Iterable

call_id: contextvars.ContextVar[str] = contextvars.ContextVar("llmos_call_id", default="")

LEVELS = ("debug", "info", "warning", "error")  # above them critical, which is always written

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON; `extra={...}` fields become members."""

    def __init__(self, process: str) -> None:
        """Remember the process name for every line."""
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if call := call_id.get():
            line["call"] = call
        line.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Shown(logging.Filter):
    """Lets the records of chosen levels through. `text`: the choice, as `levels` reads it."""

    def __init__(self) -> None:
        """Let everything through."""
        super().__init__()
        self.text = ""
        self._levels = frozenset(LEVELS)

    def choose(self, text: str) -> None:
        """Let the levels that `text` means through. Raises ValueError."""
        self._levels = levels(text)
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is written."""
        if record.levelno >= logging.CRITICAL:
            return True
        at = max(record.levelno // 10 - 1, 0)  # DEBUG is 10, INFO 20, ...
        return LEVELS[at] in self._levels


_shown = Shown()


def levels(text: str) -> frozenset[str]:
    """Return the levels meant by a level (those from it up), or by a list, `error,info`; `none`.

    Raises ValueError.
    """
    if text == "none":
        return frozenset()
    named = [part.strip().lower() for part in text.split(",")]
    for name in named:
        if name not in LEVELS:
            raise ValueError(f"{name!r} is no level of logs; {', '.join(LEVELS)} are")
    if len(named) == 1:
        return frozenset(LEVELS[LEVELS.index(named[0]) :])
    return frozenset(named)


def text_of(chosen: Iterable[str]) -> str:
    """Return the shortest text that `levels` reads as these."""
    found = [level for level in LEVELS if level in set(chosen)]
    if not found:
        return "none"
    if levels(found[0]) == frozenset(found):
        return found[0]
    return ",".join(found) if len(found) > 1 else f"{found[0]},{found[0]}"


def setup(process: str, level: str = "info") -> None:
    """Send the root logger's records of `level` and up to stderr as JSON. For `main()` only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process))
    handler.addFilter(_shown)
    logging.getLogger().handlers[:] = [handler]
    show(level)


def show(text: str) -> None:
    """Write other levels from now on, as `levels` reads them. Raises ValueError."""
    _shown.choose(text)
    lowest = min((LEVELS.index(level) for level in levels(text)), default=len(LEVELS))
    root, level = logging.getLogger(), (lowest + 1) * 10
    if root.level != level:  # it touches every logger: in a forked worker, pages of all of them
        root.setLevel(level)  # what nobody reads is not even made


def shown() -> str:
    """Return what is written now, as `levels` reads it."""
    return _shown.text or "info"
