"""The job server: a durable queue, a process per running job, and whoever watches.

What is known is on disk (see `folder.py`), so a new server goes on where a killed one stopped:
it adopts the job processes that still run, starts those again that died, and keeps what ended.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

from llmos.api.optimizer.v1 import jobs_pb2, process_pb2
from llmos.lib.call import background
from llmos.lib.errors import FailedPrecondition, NotFound
from llmos.lib.publish import Tell, nobody
from llmos.servers.optimizer import family
from llmos.servers.optimizer.entry import Entry
from llmos.servers.optimizer.files import Files
from llmos.servers.optimizer.folder import Folder
from llmos.servers.optimizer.kinds import table
from llmos.servers.optimizer.launcher import new_id
from llmos.servers.optimizer.seams import Catalog, Need
from llmos.servers.optimizer.supervisor import Supervisor

LISTED = 1000
log = logging.getLogger(__name__)


class Jobs:
    """All jobs. Methods run on one event loop; the job messages they return are copies."""

    def __init__(
        self,
        root: Path,
        supervisor: Supervisor,
        catalog: Catalog,
        *,
        parallel: int,
        keep: int,
        tell: Tell = nobody,
    ) -> None:
        """Keep jobs in folders under `root`, run `parallel` at a time, forget all but `keep`.

        tell: told of ended jobs (event job.ended).
        """
        self._root = root
        self._supervisor = supervisor
        self._catalog = catalog
        self._parallel = parallel
        self._keep = keep
        self._tell = tell
        self._entries: dict[str, Entry] = {}  # by id, oldest first
        self._requests: dict[str, str] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._submitting = asyncio.Lock()
        self._lock = -1
        self._keeping: asyncio.Task[None] | None = None
        self._closing = False

    def open(self) -> None:
        """Read what an earlier server left and go on with it.

        Raises FailedPrecondition ALREADY_RUNNING when another server has these jobs, READ_ONLY.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
        except OSError as exc:
            raise FailedPrecondition(
                "READ_ONLY",
                f"Cannot write {self._root} ({exc.strerror}); make it a writable directory or name "
                "another state directory by --state-dir.",
            ) from exc
        for path in sorted(p for p in self._root.iterdir() if p.is_dir()):
            folder = Folder(path)
            record = folder.load()
            if record is None:  # the server died while it made the folder: nobody got an answer
                folder.remove()
                continue
            entry = Entry(record, folder, self._told)
            self._entries[entry.job.id] = entry
            if record.request_id:
                self._requests[record.request_id] = entry.job.id
        for entry in self._entries.values():
            if family.orphaned(entry, self._entries):
                family.stop(entry)
            if entry.job.state == jobs_pb2.JOB_STATE_RUNNING:
                self._run(entry)
        self._pump()
        self._keeping = background(self._catalog.keep(str(self._root), self.needed))

    def needed(self) -> set[Need]:
        """Return the versions that jobs read, and which job: also those queued and paused."""
        going = [entry for entry in self._entries.values() if not entry.ended]
        models = {(ref, f"job {e.job.id}") for e in going for ref in e.record.sources}
        return models | {
            (f"dataset:{ref}", f"job {e.job.id}") for e in going for ref in e.record.datasets
        }

    def _take_lock(self) -> None:
        self._lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = -1
            raise FailedPrecondition(
                "ALREADY_RUNNING",
                f"Another optimizer server works on {self._root}; stop it first.",
            ) from None

    async def close(self) -> None:
        """Stop watching; running job processes go on, and the next server finds them."""
        self._closing = True
        tasks = list(self._running.values())
        for task in tasks:
            task.remove_done_callback(self._done)
        if self._keeping is not None:
            tasks.append(self._keeping)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def submit(self, spec: jobs_pb2.JobSpec, request_id: str) -> jobs_pb2.Job:
        """Queue a job, or return the one that `request_id` queued before.

        Raises InvalidArgument BAD_SPEC; NotFound NO_SUCH_MODEL, NO_SUCH_VERSION, NO_SUCH_ALIAS,
        NO_SUCH_DATASET; FailedPrecondition WRONG_FORMAT, MISSING_EXTRA; OSError when it cannot be
        written.
        """
        kind, message = table.find(spec)
        needs = kind.check(message)
        async with self._submitting:  # so that a retry cannot overtake its first attempt
            if (job := self._requests.get(request_id)) is not None:
                return self._entries[job].snapshot()
            kind.check_packages()
            sources = [await self._catalog.find(ref) for ref in needs.models]
            for source in sources:
                kind.check_source(message, source)
            datasets = [await self._catalog.find_dataset(ref) for ref in needs.datasets]
            entry = self._add(spec, request_id, [s.ref for s in sources], datasets)
            answer = entry.snapshot()
            self._pump()
            return answer

    def _add(
        self, spec: jobs_pb2.JobSpec, request_id: str, sources: list[str], datasets: list[str]
    ) -> Entry:
        self._forget_oldest()
        id = new_id(next(reversed(self._entries), ""))
        folder = Folder(self._root / id)
        job = jobs_pb2.Job(
            id=id,
            spec=spec,
            state=jobs_pb2.JOB_STATE_QUEUED,
            stage="waits for its turn",
            submitted_unix_s=time.time(),
            log=str(folder.log),
            sources=sources,
            datasets=datasets,
        )
        record = process_pb2.JobRecord(
            job=job,
            request_id=request_id,
            source=sources[0] if sources else "",
            sources=sources,
            datasets=datasets,
        )
        folder.create(record)
        entry = self._entries[id] = Entry(record, folder, self._told)
        if request_id:
            self._requests[request_id] = id
        if family.orphaned(entry, self._entries):  # it asked while it was being cancelled
            family.stop(entry)
        elif family.resting(entry, self._entries):  # while it was being paused
            entry.pause()
        self._catalog.changed()
        return entry

    def list(self) -> list[jobs_pb2.Job]:
        """Return jobs, newest first, at most 1,000."""
        newest = list(reversed(self._entries.values()))[:LISTED]
        return [entry.snapshot() for entry in newest]

    async def watch(self, id: str) -> AsyncIterator[jobs_pb2.Job]:
        """Yield a job's state now and after each change, until it has ended.

        A slow reader gets the newest state, not every one. Raises NotFound NO_SUCH_JOB.
        """
        entry = self._entry(id)
        while True:
            changed = entry.changed
            if entry.ended:
                await self._catalog.settle()
            yield entry.snapshot()
            if entry.ended:
                return
            await changed.wait()

    async def cancel(self, id: str) -> jobs_pb2.Job:
        """Stop a job, and its jobs; return it when all have ended. Raises NotFound NO_SUCH_JOB."""
        entry = self._entry(id)
        family.stop(entry)
        while not entry.ended:
            await entry.changed.wait()
        while going := self._children(id):
            await going[0].changed.wait()
        return entry.snapshot()

    async def pause(self, id: str) -> jobs_pb2.Job:
        """Stop a job's process, and those of its jobs; return it when all are paused.

        Raises NotFound NO_SUCH_JOB; FailedPrecondition JOB_ENDED, also when it ends meanwhile.
        """
        entry = self._going(id)
        if entry.job.state == jobs_pb2.JOB_STATE_QUEUED:
            entry.pause()
        elif not entry.paused:
            entry.record.pausing = True
            entry.save()
        while entry.record.pausing:  # else it is paused, or resumed already
            self._going(id)
            await entry.changed.wait()
        for child in self._children(id):
            if not entry.paused:  # resumed meanwhile
                break
            with suppress(FailedPrecondition):  # it ended meanwhile: so much the better
                await self.pause(child.job.id)
        return entry.snapshot()

    async def resume(self, id: str) -> jobs_pb2.Job:
        """Queue a paused job, and its jobs, again; one that is being paused when that is done.

        Raises NotFound NO_SUCH_JOB; FailedPrecondition JOB_ENDED, also when it ends meanwhile.
        """
        entry = self._going(id)
        while entry.record.pausing:
            await entry.changed.wait()
            self._going(id)
        for one in (entry, *self._children(id)):
            if one.paused:
                one.resume()
        answer = entry.snapshot()
        self._pump()
        return answer

    def files(self, id: str) -> Files:
        """Return a job's files for people. Raises NotFound NO_SUCH_JOB."""
        return Files(self._entry(id))

    def _children(self, id: str) -> Sequence[Entry]:
        return family.children(self._entries.values(), id)

    def _going(self, id: str) -> Entry:
        entry = self._entry(id)
        if entry.ended:
            state = jobs_pb2.JobState.Name(entry.job.state).removeprefix("JOB_STATE_").lower()
            raise FailedPrecondition("JOB_ENDED", f"Job {id} has ended ({state}); submit it again.")
        return entry

    def _entry(self, id: str) -> Entry:
        if id not in self._entries:
            raise NotFound(
                "NO_SUCH_JOB", f"There is no job {id[:60]!r}; `llmos-ctl job ls` lists them."
            )
        return self._entries[id]

    def _pump(self) -> None:
        """Start queued jobs, oldest first, as many as may run."""
        if self._closing:  # a job has ended this moment: the next server goes on
            return
        free = self._parallel - sum(_takes_place(self._entries[id]) for id in self._running)
        for entry in list(self._entries.values()):
            if entry.job.state == jobs_pb2.JOB_STATE_QUEUED and (
                free > 0 or not _takes_place(entry)
            ):
                free -= _takes_place(entry)
                entry.job.state = jobs_pb2.JOB_STATE_RUNNING
                self._run(entry)

    def _run(self, entry: Entry) -> None:
        task = asyncio.create_task(self._supervisor.run(entry), name=entry.job.id)
        self._running[entry.job.id] = task
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        entry = self._entries[task.get_name()]
        if self._running.get(entry.job.id) is task:  # it may be resumed already, in a task anew
            del self._running[entry.job.id]
        if (bug := task.exception()) is not None:
            log.error("a job's supervision failed", extra={"job": entry.job.id}, exc_info=bug)
            error = f"Internal error ({type(bug).__name__}); see the server's log."
            entry.end(jobs_pb2.JOB_STATE_FAILED, error)
        self._pump()

    def _told(self, job: jobs_pb2.Job) -> None:
        for child in self._children(job.id):  # of one that was cancelled, or died for good
            family.stop(child)
        self._catalog.changed()
        self._tell(
            "job.ended",
            job=job.id,
            kind=job.spec.WhichOneof("kind") or "",
            state=jobs_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower(),
            results=list(job.results),
            error=job.error,
        )

    def _forget_oldest(self) -> None:
        ended = [e for e in self._entries.values() if e.ended]
        for entry in ended[: max(0, len(ended) + 1 - self._keep)]:
            del self._entries[entry.job.id]
            self._requests.pop(entry.record.request_id, None)
            entry.folder.remove()


def _takes_place(entry: Entry) -> bool:
    """Say whether it counts as one that runs: what waits for jobs of its own must not."""
    kind = table.KINDS.get(entry.job.spec.WhichOneof("kind") or "")
    return kind is None or not kind.orchestrates
