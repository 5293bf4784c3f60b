"""What the next init must know of this one: restart counts and last exits, in one small file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

log = logging.getLogger(__name__)


class Journal:
    """Owns `<run_dir>/init.json`. Losing it costs counters, nothing else."""

    def __init__(self, path: Path) -> None:
        """Read the file when there is one."""
        self._path = path
        self._entries: dict[str, dict[str, int | str]] = {}
        try:
            entries = json.loads(path.read_text())
            self._entries = {str(k): dict(v) for k, v in entries.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            log.warning("restart counts are lost: %s: %s", path, exc)

    def get(self, name: str) -> tuple[int, str]:
        """Return (restarts, last exit) of a process."""
        entry = self._entries.get(name, {})
        return int(entry.get("restarts", 0)), str(entry.get("last_exit", ""))

    def put(self, name: str, restarts: int, last_exit: str) -> None:
        """Keep (restarts, last exit) of a process, atomically."""
        self._entries[name] = {"restarts": restarts, "last_exit": last_exit}
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(self._entries))
            temporary.replace(self._path)
        except OSError as exc:  # e.g. a full disk: supervising goes on
            temporary.unlink(missing_ok=True)
            log.warning("cannot keep restart counts: %s", exc)

    def clear(self) -> None:
        """Forget everything: a new life of this LLM OS begins, or its life has ended."""
        self._entries.clear()
        self._path.unlink(missing_ok=True)
