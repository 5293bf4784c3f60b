"""What a job's work is given: its spec, its folder, the other servers, and whom it reports to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from llmos.api.optimizer.v1 import jobs_pb2, process_pb2
from llmos.api.storage.v1 import registry_pb2
from llmos.lib import failpoint
from llmos.servers.optimizer.folder import ARTIFACTS, Report
from llmos.servers.optimizer.job.storage import Storage


class Stopped(Exception):
    """The job was asked to stop, and has kept what it needs to go on: no end is reported."""


@dataclass(frozen=True)
class JobContext:
    """One try of a job. `work` is kept between its tries and gone when the job has ended."""

    launch: process_pb2.JobLaunch
    work: Path
    storage: Storage
    report: Report
    channel: Callable[[str], grpc.aio.Channel]  # to a server, by its name

    @property
    def spec(self) -> Any:
        """Return the message of the job's kind."""
        return getattr(self.launch.spec, self.launch.spec.WhichOneof("kind") or "")

    @property
    def artifacts(self) -> Path:
        """Return the folder of files for people; it stays when the job has ended."""
        return self.work.parent / ARTIFACTS

    def tell(self, stage: str, progress: float = 0.0) -> None:
        """Say what is done now (for people), and how far all is, 0 to 1; 0 = as before."""
        self.report.send(process_pb2.JobProgress(stage=stage, progress=progress))
        failpoint.hit(f"job {stage}")

    def compared(self, comparison: jobs_pb2.Comparison) -> None:
        """Tell what a version was measured to be; the same label replaces what was told before."""
        self.report.send(process_pb2.JobProgress(comparison=comparison))

    async def register(
        self,
        files: Mapping[str, Path | str],
        *,
        step: str,
        parents: Sequence[str] = (),
        datasets: Sequence[str] = (),
        metrics: Sequence[registry_pb2.Metric] = (),
        name: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Store files (a path, or the sha256 of what is stored) as a version, once per step.

        name: empty = that of the first parent. Returns and reports `name@version`.
        """
        stored = [
            registry_pb2.File(
                name=file, sha256=at if isinstance(at, str) else await self.storage.write(at)
            )
            for file, at in files.items()
        ]
        version = registry_pb2.ModelVersion(
            name=name or parents[0].partition("@")[0],
            files=stored,
            lineage=registry_pb2.Lineage(
                source=f"job {self.launch.id}",
                parents=parents,
                datasets=datasets,
                job=self.launch.id,
                step=step,
            ),
            metrics=metrics,
            tags=tags or {},
        )
        ref = await self.storage.register(version, f"{self.launch.id}/{step}")
        failpoint.hit("job.registered")
        self.report.send(process_pb2.JobProgress(result=ref))
        return ref


def metric(name: str, value: float, unit: str = "") -> registry_pb2.Metric:
    """Return one figure."""
    return registry_pb2.Metric(name=name, value=value, unit=unit)
