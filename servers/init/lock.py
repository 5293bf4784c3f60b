"""One init per state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from llmos.lib.errors import AlreadyExists


@contextlib.contextmanager
def locked(run_dir: Path, state_dir: Path) -> Iterator[None]:
    """Hold `<run_dir>/init.lock` while inside; the system releases it if this process dies.

    Raises AlreadyExists ALREADY_UP when another init holds it, OSError when it cannot be made.
    """
    path = run_dir / "init.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise AlreadyExists(
                "ALREADY_UP",
                f"LLM OS already runs in {state_dir} (init has pid {pid}); nothing changed.",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
