"""Structured logs: one JSON object a line on stderr, with the id of the call being handled."""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import time

call_id: contextvars.ContextVar[str] = contextvars.ContextVar("llmos_call_id", default="")

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


def setup(process: str, level: str = "info") -> None:
    """Send the root logger's records of `level` and up to stderr as JSON. For `main()` only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
