"""One job in memory and on disk: its record, what its process reported, who waits for news."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llmos.api.optimizer.v1 import jobs_pb2, process_pb2
from llmos.servers.optimizer.folder import Folder, Tail

_ENDED = (jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED)
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Entry:
    """Owns the job's record; `changed` is set and replaced at each change.

    on_end: called once with the job when it ends.
    """

    record: process_pb2.JobRecord
    folder: Folder
    on_end: Callable[[jobs_pb2.Job], None] = lambda job: None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def job(self) -> jobs_pb2.Job:
        """Return the job as clients see it; not a copy."""
        return self.record.job

    @property
    def ended(self) -> bool:
        """Return whether nothing will change any more."""
        return self.job.state in _ENDED

    @property
    def paused(self) -> bool:
        """Return whether it waits to be resumed."""
        return self.job.state == jobs_pb2.JOB_STATE_PAUSED

    def pause(self) -> None:
        """Note that it waits to be resumed; its working files stay."""
        self.job.state, self.job.stage, self.job.pid = jobs_pb2.JOB_STATE_PAUSED, "paused", 0
        self.record.pausing = False
        self.save()

    def resume(self) -> None:
        """Note that it waits for its turn."""
        self.job.state, self.job.stage = jobs_pb2.JOB_STATE_QUEUED, "waits for its turn"
        self.save()

    def snapshot(self) -> jobs_pb2.Job:
        """Return a copy of the job."""
        copy = jobs_pb2.Job()
        copy.CopyFrom(self.job)
        return copy

    def tell(self) -> None:
        """Wake who waits for `changed`."""
        self.changed.set()
        self.changed = asyncio.Event()

    def save(self) -> None:
        """Write the record if it can be written; what is in memory is true either way."""
        try:
            self.folder.save(self.record)
        except OSError as exc:
            log.error("cannot save a job", extra={"job": self.job.id}, exc_info=exc)
        self.tell()

    def tail(self) -> Tail:
        """Return the reports of the present try, from the first one."""
        return Tail(self.folder.progress(self.job.attempts))

    def read(self, tail: Tail) -> process_pb2.JobEnd | None:
        """Take in what is new in a tail, which may be known; return the last word if it is there.

        Every report names what it sets, so reading it again after a restart changes nothing.
        """
        end = None
        job = self.job
        for message in tail.read():
            job.stage = message.stage or job.stage
            job.progress = message.progress or job.progress
            if message.result and message.result not in job.results:
                job.results.append(message.result)
            if message.HasField("comparison"):
                others = [c for c in job.comparisons if c.label != message.comparison.label]
                del job.comparisons[:]
                job.comparisons.extend([*others, message.comparison])
            if message.HasField("training"):
                job.training.CopyFrom(message.training)
            if message.HasField("end"):
                end = message.end
            self.tell()
        return end

    def end(self, state: jobs_pb2.JobState.ValueType, error: str = "") -> None:
        """End the job and drop its working files."""
        self.job.state, self.job.error = state, error
        if state == jobs_pb2.JOB_STATE_SUCCEEDED:
            self.job.stage, self.job.progress = "done", 1.0
        self.job.ended_unix_s = time.time()
        self.job.pid = 0
        self.folder.clear_work()
        self.save()
        name = jobs_pb2.JobState.Name(state)
        self.on_end(self.job)
        log.info("job ended", extra={"job": self.job.id, "state": name, "error": error})
