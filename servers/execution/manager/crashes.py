"""Which models crash again and again, and what they said last."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llmos.lib.errors import Unavailable

LIMIT = 3
KILLS = 10  # the same for workers that somebody else killed, which says little about the model
WINDOW_S = 60.0
SOON_S = 3.0  # a worker that dies this soon after it was ready counts as one that cannot start
_FIRST_BACKOFF_S = 5.0
_MAX_BACKOFF_S = 300.0
_TAIL = 16 << 10


@dataclass
class _Record:
    times: list[float] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    blocked_until: float = 0.0
    blocks: int = 0
    cause: str = ""


class CrashLog:
    """Refuses loads of models in a crash loop for a back-off that doubles from crash to crash."""

    def __init__(self, clock: Callable[[], float], oom_kills: Callable[[], int]) -> None:
        """Start empty; `clock` is monotonic, seconds; `oom_kills` as the function below."""
        self._clock = clock
        self._oom_kills = oom_kills
        self._seen = oom_kills()
        self._records: dict[str, _Record] = {}

    def add(self, ref: str, cause: str, status: int | None) -> None:
        """Note a crash with an exit status (negative = signal)."""
        now = self._clock()
        record = self._records.setdefault(ref, _Record())
        record.cause = cause
        times, limit = record.times, LIMIT
        if status == -signal.SIGKILL:
            before, self._seen = self._seen, self._oom_kills()
            if self._seen > before:
                record.cause += "; the machine ran out of memory meanwhile"
            else:  # an operator's hand, then: the model is not to blame
                times, limit = record.kills, KILLS
        times[:] = [t for t in times if now - t < WINDOW_S] + [now]
        if len(times) >= limit or (record.blocks and times is record.times):
            backoff = min(_FIRST_BACKOFF_S * 2**record.blocks, _MAX_BACKOFF_S)
            record.blocks += 1
            record.blocked_until = now + backoff

    def lived(self, ref: str) -> None:
        """Note that a worker of the model ran well for long: past crashes do not count any more."""
        self._records.pop(ref, None)

    def reason(self, ref: str) -> str:
        """Return why the model is in a crash loop now; "" when it is not."""
        record = self._records.get(ref)
        if record is None or record.blocked_until <= self._clock():
            return ""
        return record.cause

    def check(self, ref: str) -> None:
        """Raise Unavailable CRASH_LOOP while the model is not to be tried again."""
        if not (cause := self.reason(ref)):
            return
        wait = self._records[ref].blocked_until - self._clock()
        raise Unavailable(
            "CRASH_LOOP",
            f"{ref} crashes again and again and is tried next in {wait:.0f} s; last: {cause}",
            retry_after_s=wait,
        )


def oom_kills(path: Path = Path("/proc/vmstat")) -> int:
    """Return how many processes the system has killed for want of memory since it booted.

    Source: Linux, mm/vmstat.c (`oom_kill`); containers count too. 0 where it is not told.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(n) for key, _, n in (x.partition(" ") for x in lines) if key == "oom_kill"), 0)


def how_it_ended(state_dir: Path, ref: str, status: int | None) -> str:
    """Return how and with what last words a worker ended, for people."""
    line = last_line(state_dir / "logs" / f"worker+{ref}.log")
    return f"{describe_exit(status)} (its log ends: {line})" if line else describe_exit(status)


def describe_exit(status: int | None) -> str:
    """Return how a process ended; negative = signal, None = not known."""
    if status is None:
        return "ended"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"exited with status {status}"


def last_line(path: Path) -> str:
    """Return what a log says last, for people; "" when it says nothing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        return ""
    for line in reversed(lines):
        if line.startswith("{"):
            break
        if line.startswith("Fatal Python error"):
            return line
    return _readable(lines[-1])[:300]


def _readable(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict):
        return line
    parts = [str(entry.get("message", ""))]
    parts += [str(entry[k]).strip().splitlines()[-1] for k in ("cause", "error") if entry.get(k)]
    return ": ".join(p for p in parts if p)
