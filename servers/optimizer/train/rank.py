"""The processes of a distributed training: `python -m ...train.rank PROCESSES RESTARTS FOLDER`.

It is torchrun (its agent, in this process), which starts one process for each rank and all anew
when one dies. Each ends with the process above it, so that a job that is killed leaves none behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import uuid
from importlib import import_module
from pathlib import Path

from llmos.lib import log as logs
from llmos.lib.errors import LLMOSError
from llmos.servers.optimizer.folder import Folder, Report
from llmos.servers.optimizer.gpu import forks
from llmos.servers.optimizer.train.gate import Gate
from llmos.servers.optimizer.train.table import write_json

_PR_SET_PDEATHSIG = 1
ERROR = "error.json"  # in the working folder: why the training cannot go on


def _end_with_parent() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os.kill(os.getpid(), signal.SIGKILL)


def start(processes: int, restarts: int, folder: Path) -> None:
    """Be torchrun until all is done. Raises ChildFailedError after too many restarts."""
    _end_with_parent()
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A store of their own for the ranks of each start: in the agent's, those that are started anew
    # find the addresses of the dead, and wait for them until the job is given up.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    import_module("llmos.servers.optimizer.train.fit")  # seconds, which the ranks need not spend
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        max_restarts=restarts,
        monitor_interval=0.2,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork" if forks() else "spawn",
    )
    elastic_launch(config, rank)(folder)


def rank(path: Path) -> None:
    """Train as one of several."""
    _end_with_parent()
    folder = Folder(path)
    error = folder.work / ERROR
    if error.exists():  # started again for nothing
        return
    launch = folder.read_launch()
    logs.setup(f"job/{launch.id}/{os.environ['RANK']}")
    from llmos.servers.optimizer.train.fit import fit, told
    from llmos.servers.optimizer.train.work import workshop

    report = Report(folder.progress(launch.attempt))
    gate = Gate(folder.work, threading.Event())
    threads = max(1, launch.threads // int(os.environ["WORLD_SIZE"]))
    try:
        fit(
            workshop(launch, folder.work),
            gate,
            lambda now: report.send(told(now)),
            threads,
        )
    except LLMOSError as exc:
        write_json(error, {"type": type(exc).__name__, "reason": exc.reason, "text": exc.message})
        sys.exit(1)


if __name__ == "__main__":
    start(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
