"""The job process: reads what to do, does it, reports; outlives the server that started it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from llmos.api.optimizer.v1 import process_pb2 as pb
from llmos.lib import log as logs
from llmos.lib.config import ServerConfig
from llmos.lib.errors import LLMOSError
from llmos.lib.host import ProcessRecord
from llmos.lib.serve import Server
from llmos.servers.optimizer.folder import Folder, Report
from llmos.servers.optimizer.job.context import JobContext, Stopped
from llmos.servers.optimizer.job.storage import Storage
from llmos.servers.optimizer.kinds import table

_NICE = 5  # people wait for models, nobody for a job
log = logging.getLogger(__name__)


async def _run(launch: pb.JobLaunch, folder: Folder, report: Report) -> None:
    config = ServerConfig(
        state_dir=Path(launch.state_dir), kernel=launch.kernel, peers=launch.peers
    )
    # A port under the job's own name: it shows in the kernel's list, and calls are billed to it.
    server = Server(f"job/{launch.id}", config, requires=["storage"], listen=False)
    await server.start()
    try:
        kind, _ = table.find(launch.spec)
        storage = Storage(server.channel("storage"))
        await kind.load()(JobContext(launch, folder.work, storage, report, server.channel)).run()
    finally:
        await server.stop(grace_s=1.0)


def main() -> None:
    """Do the job in the folder given; exit 0 when its end was reported, also a failure."""
    folder = Folder(Path(sys.argv[1]))
    launch = folder.read_launch()
    logs.setup(f"job/{launch.id}")
    _keep_lock()
    record = ProcessRecord.of(os.getpid(), f"job/{launch.id}", log=str(folder.log))
    record.write(ServerConfig(state_dir=Path(launch.state_dir)).run_dir())
    os.nice(_NICE)
    report = Report(folder.progress(launch.attempt))  # open to the end of the process
    try:
        asyncio.run(_run(launch, folder, report))
    except Stopped:
        log.info("stopped; it can go on from here")
    except LLMOSError as exc:
        log.warning("failed", extra={"reason": exc.reason, "error": exc.message})
        report.send(pb.JobProgress(end=pb.JobEnd(error=exc.message)))
    except Exception as exc:  # the outermost: a bug or a full disk ends the job, not silently
        log.exception("failed")
        error = f"The job failed ({type(exc).__name__}: {exc}); see {folder.log}."
        report.send(pb.JobProgress(end=pb.JobEnd(error=error)))
    else:
        report.send(pb.JobProgress(end=pb.JobEnd()))


def _keep_lock() -> None:
    """Move the lock, which came as standard input, to where no child of ours inherits it."""
    os.dup(0)  # not inheritable, and open until this process ends
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


if __name__ == "__main__":
    main()
