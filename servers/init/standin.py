"""init's stand-in: a process that does nothing but wait, and becomes the next init if init dies.

QNX's high-availability manager calls it the Guardian. It is started once everything is ready and
told to stop before init ends on purpose; so an init that ends without that has died. The stand-in
then replaces itself by a new init (same pid), which adopts the running processes and starts a
stand-in of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from llmos.lib.host import ProcessRecord
from llmos.servers.init.spawner import Spawner

NAME = "stand-in"
_AGAIN_S = 1.0
log = logging.getLogger(__name__)


async def keep(spawner: Spawner, run_dir: Path, log_file: Path) -> None:
    """Keep one stand-in running until cancelled; then stop it."""
    while True:
        argv = [sys.executable, "-m", __name__, str(os.getpid()), str(run_dir), *sys.argv[1:]]
        handle = spawner.spawn(argv, log_file)
        try:
            exit_ = await handle.wait()
        except asyncio.CancelledError:
            handle.signal(signal.SIGTERM)
            await handle.wait()
            raise
        log.warning("the stand-in ended; starting another", extra={"exit": str(exit_)})
        await asyncio.sleep(_AGAIN_S)


def stand_in(init: int, run_dir: Path, argv: Sequence[str]) -> None:
    """Wait for the process `init` to end, then become the init with arguments `argv`."""
    record = ProcessRecord.of(os.getpid(), NAME)
    try:
        fd = os.pidfd_open(init)
    except ProcessLookupError:  # it died before we could look
        fd = -1
    record.write(run_dir)
    signal.signal(signal.SIGTERM, lambda *_: _leave(record, run_dir))
    if fd >= 0:
        select.select([fd], [], [])
        os.close(fd)
    record.remove(run_dir)
    print(f"llmos-init: init (pid {init}) died; its stand-in takes over.", file=sys.stderr)
    os.execv(sys.executable, [sys.executable, "-m", "llmos.servers.init", *argv])


def _leave(record: ProcessRecord, run_dir: Path) -> None:
    record.remove(run_dir)
    sys.exit(0)


if __name__ == "__main__":
    stand_in(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
