"""llmos-optimizer: jobs that make new model versions, each in a process of its own."""

from __future__ import annotations

import os
import sys

import uvloop

from llmos.api.optimizer.v1 import jobs_pb2_grpc, privacy_pb2_grpc, process_pb2
from llmos.lib import log
from llmos.lib.config import load_or_exit
from llmos.lib.errors import InvalidArgument, LLMOSError
from llmos.lib.publish import Publisher
from llmos.lib.serve import Server
from llmos.servers.optimizer.catalog import StorageCatalog
from llmos.servers.optimizer.config import OptimizerConfig
from llmos.servers.optimizer.core import Jobs
from llmos.servers.optimizer.gpu import forks
from llmos.servers.optimizer.launcher import Launcher
from llmos.servers.optimizer.nursery import Nursery
from llmos.servers.optimizer.privacy import PrivacyService
from llmos.servers.optimizer.service import JobsService
from llmos.servers.optimizer.supervisor import Supervisor
from llmos.servers.optimizer.train.budget import Budgets


def build(config: OptimizerConfig, server: Server) -> Jobs:
    """Return the core for a server. Raises LLMOSError when it cannot work."""
    for name in ("parallel", "max_crashes", "keep_jobs"):
        if getattr(config, name) < 1:
            raise InvalidArgument("BAD_CONFIG", f"[optimizer] {name} must be at least 1.")
    if not config.stall_s >= 0:
        raise InvalidArgument("BAD_CONFIG", "[optimizer] stall_s must not be negative.")
    launch = process_pb2.JobLaunch(
        state_dir=str(config.state_dir),
        kernel=config.kernel or config.socket("kernel"),
        peers=_peers(config),
        threads=config.threads or len(os.sched_getaffinity(0)),
    )
    launcher = Launcher(config.run_dir(), nursery=Nursery() if forks() else None)
    return Jobs(
        config.state_dir / "optimizer" / "jobs",
        Supervisor(launcher, launch, config.max_crashes, looked=server.progress),
        StorageCatalog(server.channel("storage")),
        parallel=config.parallel,
        keep=config.keep_jobs,
        tell=Publisher(server.port.channel if server.port is not None else None).tell,
    )


def _peers(config: OptimizerConfig) -> str:
    """Return the servers that jobs call without a kernel: also this one, for jobs of a job."""
    own = config.listen or config.socket("optimizer")
    return ",".join(filter(None, (config.peers, f"optimizer={own}")))


async def serve(config: OptimizerConfig) -> None:
    """Serve until SIGTERM; job processes go on. Raises LLMOSError when it cannot start."""
    server = Server("optimizer", config, requires=["storage"])
    jobs = build(config, server)
    server.add(
        jobs_pb2_grpc.add_JobsServicer_to_server,
        JobsService(jobs),
        stall_ms=int(config.stall_s * 1000),
    )
    storage = server.channel("storage")
    server.add(
        privacy_pb2_grpc.add_PrivacyBudgetsServicer_to_server,
        PrivacyService(StorageCatalog(storage), Budgets(storage)),
    )
    try:
        jobs.open()
        await server.run()
    finally:
        await jobs.close()


def main() -> None:
    """Run the process."""
    config = load_or_exit(OptimizerConfig, "optimizer", __doc__ or "")
    log.setup("optimizer", config.log_level)
    try:
        uvloop.run(serve(config))
    except LLMOSError as exc:
        print(f"llmos-optimizer: {exc}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
