"""`llmos-kernel`: routes messages and schedules calls between attached processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

import uvloop

from llmos.kernel.config import KernelConfig
from llmos.kernel.record import replay
from llmos.kernel.transport.server import KernelServer
from llmos.lib import log as logs
from llmos.lib.config import load_or_exit, run_dir, socket_address
from llmos.lib.errors import LLMOSError
from llmos.lib.host import ProcessRecord
from llmos.lib.rpc import from_exception
from llmos.lib.tuning import quiet_gc

log = logging.getLogger(__name__)


async def serve(config: KernelConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    address = config.listen or socket_address(config.state_dir, "kernel")
    # The Unix socket last: a TCP port in use then leaves no socket file behind.
    addresses = [config.tcp] * (config.tcp not in ("", "none")) + [address]
    kernel = KernelServer(record=Path(config.record) if config.record else None)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    folder = run_dir(config.state_dir)
    record = ProcessRecord.of(os.getpid(), "kernel", address)
    await kernel.start(addresses)
    try:
        record.write(folder)
        quiet_gc()
        await stopping.wait()
    finally:
        await kernel.stop()
        record.remove(folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address.removeprefix("unix:"))
    log.info("kernel stopped")


def main() -> None:
    """Run the process."""
    config = load_or_exit(KernelConfig, "kernel", __doc__ or "")
    logs.setup("kernel", config.log_level)
    try:
        if config.replay:
            for line in replay(Path(config.replay)):
                print(line)
            return
        uvloop.run(serve(config))
    except (LLMOSError, OSError) as exc:
        print(f"llmos-kernel: {from_exception(exc)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
