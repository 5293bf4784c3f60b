"""Sees one running job through: its process, the next one when it dies, its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable

from llmos.api.optimizer.v1 import jobs_pb2, process_pb2
from llmos.servers.optimizer.entry import Entry
from llmos.servers.optimizer.kinds import table
from llmos.servers.optimizer.launcher import Launcher
from llmos.servers.optimizer.nursery import Process

_POLL_S = 0.1  # how often a job's reports are read
_PAUSE_S = 1.0  # before a job whose process died is started again
log = logging.getLogger(__name__)


class Supervisor:
    """Runs jobs. Cancelling `run` leaves the job's process running, for the next server."""

    def __init__(
        self,
        launcher: Launcher,
        launch: process_pb2.JobLaunch,
        max_crashes: int,
        grace_s: float = 5.0,
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        """Give every process a copy of `launch`; fail a job whose process died max_crashes times.

        Deaths that no server saw, e.g. when the whole system was stopped, do not count. A process
        has `grace_s` from SIGTERM, or from its last word, to its end. looked: called after each
        look at a job's process, which is what those who watch or cancel it wait for.
        """
        self._grace_s = grace_s
        self._looked = looked
        self._launcher = launcher
        self._launch = launch
        self._max_crashes = max_crashes

    async def run(self, entry: Entry) -> None:
        """Run a job to its end, from wherever an earlier server left it."""
        process: Process | None = None
        try:
            process = self._launcher.find(entry.job.id, entry.folder)
            if process is None and entry.job.attempts:
                # Its process ended while no server watched: with a last word, or not.
                self._conclude(entry, entry.read(entry.tail()), None)
            while not (entry.ended or entry.paused):
                if process is None:
                    process = self._start(entry)
                entry.job.pid = process.pid()
                entry.save()
                end = await self._follow(entry, process)
                self._conclude(entry, end, process)
                process = None
                if not (entry.ended or entry.paused):
                    await self._pause(entry)
        except OSError as exc:  # its folder cannot be written: no room, or it is gone
            if process is not None:
                process.signal(signal.SIGKILL)
            entry.end(jobs_pb2.JOB_STATE_FAILED, f"Its files cannot be written: {exc}.")

    def _start(self, entry: Entry) -> Process:
        job = entry.job
        job.attempts += 1
        job.stage = "starts"
        launch = process_pb2.JobLaunch()
        launch.CopyFrom(self._launch)
        launch.id, launch.source, launch.attempt = job.id, entry.record.source, job.attempts
        launch.sources[:], launch.datasets[:] = entry.record.sources, entry.record.datasets
        launch.spec.CopyFrom(job.spec)
        entry.folder.write_launch(launch)
        entry.folder.save(entry.record)  # first: a try that nobody knows of must not run
        kind, message = table.find(job.spec)
        return self._launcher.start(job.id, entry.folder, kind.modules(message))

    async def _follow(self, entry: Entry, process: Process) -> process_pb2.JobEnd | None:
        """Take in what the process reports until it is gone; return its last word."""
        tail, end = entry.tail(), None
        asked: float | None = None  # when it was asked to end
        while True:
            alive = process.alive()  # before the last read, so that nothing is missed
            end = entry.read(tail) or end
            if not alive:
                return end
            if not entry.job.pid and (pid := process.pid()):
                entry.job.pid = pid
                entry.save()
            stopping = entry.record.cancelling or entry.record.pausing
            if asked is None and (end is not None or stopping):
                asked = time.monotonic()
                if stopping:
                    process.signal(signal.SIGTERM)
            elif asked is not None and time.monotonic() - asked > self._grace_s:
                process.signal(signal.SIGKILL)
            self._looked()
            await asyncio.sleep(_POLL_S)

    def _conclude(
        self, entry: Entry, end: process_pb2.JobEnd | None, process: Process | None
    ) -> None:
        """End the job if that is what its process's end means."""
        if end is not None and not end.error:
            entry.end(jobs_pb2.JOB_STATE_SUCCEEDED)
        elif entry.record.cancelling:
            entry.end(jobs_pb2.JOB_STATE_CANCELLED)
        elif end is not None:
            entry.end(jobs_pb2.JOB_STATE_FAILED, end.error)
        elif entry.record.pausing:
            entry.pause()
        elif process is not None:
            entry.record.crashes += 1
            how = process.ending()
            log.warning("job process died", extra={"job": entry.job.id, "how": how})
            if entry.record.crashes >= self._max_crashes:
                entry.end(
                    jobs_pb2.JOB_STATE_FAILED,
                    f"Its process died {entry.record.crashes} times, the last time {how}; see "
                    f"{entry.folder.log}.",
                )

    async def _pause(self, entry: Entry) -> None:
        entry.job.pid = 0
        entry.job.stage = "its process died; it is started again"
        entry.save()
        await asyncio.sleep(_PAUSE_S)
        if entry.record.cancelling:
            entry.end(jobs_pb2.JOB_STATE_CANCELLED)
        elif entry.record.pausing:
            entry.pause()
