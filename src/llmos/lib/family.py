"""Which processes of this host belong to one LLM OS, whoever started them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from llmos.lib.host import ProcessRecord, records

MARK = "LLMOS_RUN_DIR"  # environment variable that init gives its children, and they to theirs


def mark(run_dir: Path) -> dict[str, str]:
    """Return the environment variable that makes a process and its descendants members."""
    return {MARK: str(run_dir)}


def members(run_dir: Path) -> Iterator[ProcessRecord]:
    """Yield the members that run: those with a record, then those that have only the mark.

    The latter are processes that have not written their record yet, or never do.
    """
    known = set()
    for record in records(run_dir):
        known.add(record.pid)
        yield record
    for process in psutil.process_iter():
        if process.pid in known:
            continue
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(run_dir):
                name = f"{process.name()}/{process.pid}"
                record = ProcessRecord(name, process.pid, process.create_time())
                if record.alive():
                    yield record
