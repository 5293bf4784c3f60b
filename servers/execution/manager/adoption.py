"""Workers that an earlier manager has left running."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from llmos.lib.errors import InvalidArgument, LLMOSError
from llmos.lib.host import ProcessRecord, records
from llmos.servers.execution.manager.logs import keep_level
from llmos.servers.execution.manager.model import Ref, Worker
from llmos.servers.execution.manager.options import cores_of
from llmos.servers.execution.manager.process import Process
from llmos.servers.execution.manager.seams import Router
from llmos.servers.execution.manager.starting import describe

_PREFIX = "worker/"
log = logging.getLogger(__name__)


async def adopt(run_dir: Path, router: Router) -> list[Worker]:
    """Return the workers whose records are in `run_dir`; end those that do not answer."""
    found = [r for r in records(run_dir) if r.name.startswith(_PREFIX)]
    workers = await asyncio.gather(*(_adopt(r, router) for r in found))
    return [w for w in workers if w is not None]


async def _adopt(record: ProcessRecord, router: Router) -> Worker | None:
    try:
        text, _, number = record.name.removeprefix(_PREFIX).partition("#")
        ref = Ref.parse(text)
        replica = int(number or 0)
        process = Process(record.pid)
    except (InvalidArgument, ProcessLookupError, ValueError):
        return None
    worker = Worker(ref.name, ref.version, replica, process=process, listen=record.address)
    worker.cpus = cores_of(record.pid)
    try:
        info = await router.describe(worker)
    except LLMOSError as exc:
        cause = exc.message
    else:
        if info.pid == record.pid:
            describe(worker, info)
            await keep_level(worker, router)
            log.info("adopted", extra={"worker": worker.id, "pid": worker.pid})
            return worker
        cause = f"process {info.pid} answers in its place"
    log.warning("ending", extra={"worker": worker.id, "pid": worker.pid, "cause": cause})
    await process.kill()
    return None
