"""Has the torch engine's kernels compiled when the manager starts: the first load finds them."""

from __future__ import annotations

import asyncio
import logging
import sys
import time

from llmos.servers.execution.engine.torch.native import build

log = logging.getLogger(__name__)


async def compile_kernels() -> None:
    """Compile in a process of its own, once per machine; a load that comes earlier waits for it.

    The process ends by itself when the manager does not wait for it any more.
    """
    if not build.missing():
        return
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", build.__name__)
    code = await process.wait()
    seconds = round(time.monotonic() - begun, 1)
    log.info("kernels of the torch engine", extra={"seconds": seconds, "exit": code})
