"""Jobs of a job: submitted once each, watched through restarts of the server.

They are cancelled, paused and resumed with it, by the server (`family.py`).
"""

from __future__ import annotations

import asyncio

import grpc

from llmos.api.optimizer.v1 import jobs_pb2 as pb
from llmos.api.optimizer.v1 import jobs_pb2_grpc
from llmos.lib import failpoint
from llmos.lib.errors import Aborted, Unavailable
from llmos.lib.rpc import from_rpc_error
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.storage import patiently

_PAUSE_S = 0.5


class Children:
    """Submits jobs under request ids of this job, so that its next process finds the same ones."""

    def __init__(self, context: JobContext) -> None:
        """Submit nothing yet."""
        self._context = context
        channel = context.channel("optimizer")
        self._stub: jobs_pb2_grpc.JobsAsyncStub = jobs_pb2_grpc.JobsStub(channel)

    async def run(self, name: str, spec: pb.JobSpec) -> pb.Job:
        """Run a job to its end and return it, whatever its end is; `name` is unique in this job.

        Raises what the server says to the spec.
        """
        request = pb.SubmitJobRequest(spec=spec, request_id=f"{self._context.launch.id}/{name}")

        async def submit() -> pb.SubmitJobResponse:
            return await self._stub.SubmitJob(request, timeout=60)

        job = (await patiently(submit)).job
        failpoint.hit(f"job.submitted {name}")
        return await self._watch(job.id)

    async def _watch(self, id: str) -> pb.Job:
        last = pb.Job()
        while True:
            try:
                async for answer in self._stub.WatchJob(pb.WatchJobRequest(id=id)):
                    last = answer.job
                    self._context.tell(f"job {id}: {last.stage}")
                if last.state in (
                    pb.JOB_STATE_SUCCEEDED,
                    pb.JOB_STATE_FAILED,
                    pb.JOB_STATE_CANCELLED,
                ):
                    return last
            except grpc.RpcError as exc:
                error = from_rpc_error(exc)
                if not isinstance(error, Unavailable):
                    raise error from exc
            await asyncio.sleep(_PAUSE_S)  # the server starts anew


def succeeded(job: pb.Job, what: str) -> pb.Job:
    """Return the job. Raises Aborted STEP_FAILED with its own error when it did not succeed."""
    if job.state != pb.JOB_STATE_SUCCEEDED:
        how = job.error or pb.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
        raise Aborted("STEP_FAILED", f"{what} (job {job.id}) did not succeed: {how}")
    return job


def figures(job: pb.Job) -> tuple[dict[str, float], dict[str, float]]:
    """Return the original's figures and those of the last version that a job compared."""
    values = [{m.name: m.value for m in c.measures} for c in job.comparisons]
    if not values:
        return {}, {}
    return values[0], values[-1] if len(values) > 1 else {}
