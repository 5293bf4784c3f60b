"""The job server's core over real processes of `sham_job.py`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from llmos.api.optimizer.v1 import jobs_pb2, process_pb2
from llmos.lib.config import run_dir
from llmos.lib.errors import NotFound
from llmos.lib.host import records
from llmos.lib.publish import Tell, nobody
from llmos.servers.optimizer.core import Jobs
from llmos.servers.optimizer.launcher import Launcher
from llmos.servers.optimizer.seams import Need, Source
from llmos.servers.optimizer.supervisor import Supervisor

COMMAND = (sys.executable, str(Path(__file__).with_name("sham_job.py")))


class Shelf:
    """A catalog where every model is a safetensors encoder, but `llm` and what is not there."""

    async def find(self, ref: str) -> Source:
        name, _, version = ref.partition("@")
        if name == "none":
            raise NotFound("NO_SUCH_MODEL", "There is no model none.")
        if version == "9":
            raise NotFound("NO_SUCH_VERSION", f"{name} has no version 9.")
        task, format = ("generate", "gguf") if name == "llm" else ("embed", "safetensors")
        return Source(f"{name}@{version or 1}", format, task)

    async def find_dataset(self, ref: str) -> str:
        name, _, version = ref.partition("@")
        if name == "none":
            raise NotFound("NO_SUCH_DATASET", "There is no data set none.")
        return f"{name}@{version or 1}"

    async def keep(self, place: str, needed: Callable[[], Iterable[Need]]) -> None:
        self.needed = needed

    async def settle(self) -> None: ...

    def changed(self) -> None: ...


def core(
    state: Path,
    *,
    parallel: int = 1,
    keep: int = 100,
    max_crashes: int = 3,
    tell: Tell = nobody,
    looked: Callable[[], None] = lambda: None,
) -> Jobs:
    """Return a core; open it yourself."""
    supervisor = Supervisor(
        Launcher(run_dir(state), COMMAND),
        process_pb2.JobLaunch(state_dir=str(state), kernel="none"),
        max_crashes,
        grace_s=0.5,
        looked=looked,
    )
    return Jobs(state / "jobs", supervisor, Shelf(), parallel=parallel, keep=keep, tell=tell)


@asynccontextmanager
async def running(state: Path, *, parallel: int = 1, keep: int = 100) -> AsyncIterator[Jobs]:
    """Run a core; end its job processes."""
    jobs = core(state, parallel=parallel, keep=keep)
    jobs.open()
    try:
        yield jobs
    finally:
        await jobs.close()
        end_jobs(state)


def end_jobs(state: Path) -> None:
    """Kill all job processes."""
    for record in list(records(run_dir(state))):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(record.pid, signal.SIGKILL)


def export(model: str) -> jobs_pb2.JobSpec:
    """Return a spec."""
    return jobs_pb2.JobSpec(export_onnx=jobs_pb2.ExportOnnx(model=model))


async def ended(jobs: Jobs, id: str) -> jobs_pb2.Job:
    """Watch a job to its end."""
    last = jobs_pb2.Job()
    async for job in jobs.watch(id):
        last = job
    return last


async def reaches(jobs: Jobs, id: str, stage: str) -> jobs_pb2.Job:
    """Watch a job until it is at a stage."""
    async for job in jobs.watch(id):
        if job.stage == stage:
            return job
    raise AssertionError(f"{id} never came to {stage}")
