"""The Jobs service: converts and delegates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from llmos.api.optimizer.v1 import jobs_pb2 as pb
from llmos.api.optimizer.v1 import jobs_pb2_grpc
from llmos.servers.optimizer.core import Jobs


class JobsService(jobs_pb2_grpc.JobsServicer):
    """Serves a core."""

    def __init__(self, core: Jobs) -> None:
        """Answer from `core`."""
        self._core = core

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Any) -> pb.SubmitJobResponse:
        """Queue a job."""
        return pb.SubmitJobResponse(job=await self._core.submit(request.spec, request.request_id))

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: Any
    ) -> AsyncIterator[pb.WatchJobResponse]:
        """Stream a job's states."""
        async for job in self._core.watch(request.id):
            yield pb.WatchJobResponse(job=job)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        """List jobs."""
        return pb.ListJobsResponse(jobs=self._core.list())

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        """Stop a job."""
        return pb.CancelJobResponse(job=await self._core.cancel(request.id))

    async def PauseJob(self, request: pb.PauseJobRequest, context: Any) -> pb.PauseJobResponse:
        """Stop a job's process; keep its work."""
        return pb.PauseJobResponse(job=await self._core.pause(request.id))

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> pb.ResumeJobResponse:
        """Queue a paused job again."""
        return pb.ResumeJobResponse(job=await self._core.resume(request.id))

    async def ReadJobLog(
        self, request: pb.ReadJobLogRequest, context: Any
    ) -> AsyncIterator[pb.ReadJobLogResponse]:
        """Stream a log."""
        async for piece in self._core.files(request.id).log(request.lines, request.follow):
            yield pb.ReadJobLogResponse(data=piece)

    async def ListArtifacts(
        self, request: pb.ListArtifactsRequest, context: Any
    ) -> pb.ListArtifactsResponse:
        """List artefacts."""
        return pb.ListArtifactsResponse(artifacts=self._core.files(request.id).list())

    async def ReadArtifact(
        self, request: pb.ReadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.ReadArtifactResponse]:
        """Stream an artefact."""
        for piece in self._core.files(request.id).read(request.name):
            yield pb.ReadArtifactResponse(data=piece)
