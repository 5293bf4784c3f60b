"""Workers log what the manager logs, also when that changes while they run."""

from __future__ import annotations

import logging

from llmos.lib import log as logs
from llmos.lib.errors import LLMOSError
from llmos.servers.execution.manager.model import Worker
from llmos.servers.execution.manager.seams import Router

log = logging.getLogger(__name__)


async def keep_level(worker: Worker, router: Router) -> None:
    """Let a worker log what this process logs, unless it does already. A failure is logged."""
    while worker.log_level != (level := logs.shown()):
        try:
            await router.log(worker, level)
        except LLMOSError as exc:  # it ends, or is of before an upgrade: it serves all the same
            log.warning("logs as before", extra={"worker": worker.id, "cause": exc.message})
            return
        worker.log_level = level
