"""The kernel's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmos.lib.config import option


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """See `llmos-kernel --help`."""

    state_dir: Path = option(Path(), "directory of all state (default: $LLMOS_STATE_DIR or XDG)")
    listen: str = option("", "address for ports (default: a Unix socket in the state directory)")
    tcp: str = option("127.0.0.1:50051", "second, TCP address; empty or `none` = none")
    record: str = option("", "file to record every event to, for --replay (grows without bound)")
    replay: str = option("", "replay a recording, print it as JSON lines, and end")
    log_level: str = option("info", "debug, info, warning or error")
