"""One of the processes of a distributed training: `python -m ...train.rank FOLDER`, by torchrun.

Also what starts torchrun: `python -m ...train.rank --start PROCESSES RESTARTS FOLDER`. Both end
with the process above them, so that a job that is killed leaves none behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

from llmos.api.optimizer.v1 import process_pb2 as pb
from llmos.lib import log as logs
from llmos.lib.errors import LLMOSError
from llmos.servers.optimizer.folder import Folder, Report
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
    """Be torchrun until all is done."""
    _end_with_parent()
    from torch.distributed.run import main as torchrun

    torchrun(
        [
            *("--standalone", "--nproc-per-node", str(processes)),
            *("--max-restarts", str(restarts), "--monitor-interval", "0.2"),
            *("-m", __spec__.name if __spec__ else __name__, str(folder)),
        ]
    )


def rank(folder: Folder) -> None:
    """Train as one of several."""
    _end_with_parent()
    error = folder.work / ERROR
    if error.exists():  # started again for nothing
        return
    launch = folder.read_launch()
    logs.setup(f"job/{launch.id}/{os.environ['RANK']}")
    from llmos.servers.optimizer.train.fit import fit
    from llmos.servers.optimizer.train.work import workshop

    report = Report(folder.progress(launch.attempt))
    gate = Gate(folder.work, threading.Event())
    threads = max(1, launch.threads // int(os.environ["WORLD_SIZE"]))
    try:
        fit(
            workshop(launch, folder.work),
            gate,
            lambda now: report.send(pb.JobProgress(training=now)),
            threads,
        )
    except LLMOSError as exc:
        write_json(error, {"type": type(exc).__name__, "reason": exc.reason, "text": exc.message})
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1] == "--start":
        start(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        rank(Folder(Path(sys.argv[1])))
