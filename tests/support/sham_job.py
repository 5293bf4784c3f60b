"""A job process for tests of the job server: does what its model's name says, and reports it.

`good` ends well after a while, `slow` works for a minute, `stubborn` ignores SIGTERM, `bad` ends
with an error, `dies` kills itself, `dies-once` does so in its first try only.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.optimizer.v1.process_pb2 import JobEnd, JobProgress
from llmos.servers.optimizer.folder import Folder, Report


def main() -> None:
    os.dup(0)
    folder = Folder(Path(sys.argv[1]))
    launch = folder.read_launch()
    what, _, _ = launch.source.partition("@")
    if what == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report = Report(folder.progress(launch.attempt))
    report.send(JobProgress(stage="works", progress=0.5, result="half@1"))
    (folder.work / "scratch").write_text("x")
    if what == "dies" or (what == "dies-once" and launch.attempt == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if what in ("slow", "stubborn"):
        time.sleep(60)
    time.sleep(0.2)
    comparison = jobs_pb2.Comparison(label="onnx", ref="half@1", texts=1)
    report.send(JobProgress(result="whole@2", comparison=comparison))
    report.send(JobProgress(end=JobEnd(error="It is bad; do better." if what == "bad" else "")))


main()
