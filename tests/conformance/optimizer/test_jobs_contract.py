"""The Jobs service's contract, in process and over gRPC."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from job_core import export, running

from llmos.api.optimizer.v1 import jobs_pb2 as pb
from llmos.api.optimizer.v1 import jobs_pb2_grpc
from llmos.lib.errors import FailedPrecondition, InvalidArgument, LLMOSError, NotFound
from llmos.lib.rpc import ErrorInterceptor, from_exception
from llmos.servers.optimizer.service import JobsService


class InProcess:
    """Calls a servicer as gRPC would, without it."""

    def __init__(self, servicer: JobsService) -> None:
        self._servicer = servicer

    def __getattr__(self, name: str) -> Any:
        return lambda request: getattr(self._servicer, name)(request, None)


@pytest.fixture(params=["in process", "gRPC"])
async def stub(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    async with running(tmp_path) as core:
        service = JobsService(core)
        if request.param == "in process":
            yield InProcess(service)
            return
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        jobs_pb2_grpc.add_JobsServicer_to_server(service, server)
        server.add_insecure_port(f"unix:{tmp_path}/grpc.sock")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/grpc.sock") as channel:
            yield jobs_pb2_grpc.JobsStub(channel)
        await server.stop(0)


async def fails(call: Any, error: type[LLMOSError], reason: str) -> str:
    with pytest.raises((LLMOSError, grpc.RpcError)) as caught:
        await call
    found = from_exception(caught.value)
    assert (type(found), found.reason) == (error, reason)
    return found.message


async def test_a_job_from_its_submission_to_its_end(stub: Any) -> None:
    submitted = await stub.SubmitJob(pb.SubmitJobRequest(spec=export("good@1"), request_id="r"))
    job = submitted.job
    assert job.state == pb.JOB_STATE_QUEUED and job.spec == export("good@1")
    again = await stub.SubmitJob(pb.SubmitJobRequest(spec=export("good@1"), request_id="r"))
    assert again.job.id == job.id
    states = [answer.job async for answer in stub.WatchJob(pb.WatchJobRequest(id=job.id))]
    assert states[-1].state == pb.JOB_STATE_SUCCEEDED
    assert pb.JOB_STATE_RUNNING in {s.state for s in states}
    assert [s.progress for s in states] == sorted(s.progress for s in states)
    listed = (await stub.ListJobs(pb.ListJobsRequest())).jobs
    assert list(listed) == [states[-1]]
    after = [answer.job async for answer in stub.WatchJob(pb.WatchJobRequest(id=job.id))]
    assert after == [states[-1]]
    cancelled = await stub.CancelJob(pb.CancelJobRequest(id=job.id))
    assert cancelled.job == states[-1]


async def test_cancel(stub: Any) -> None:
    request = pb.SubmitJobRequest(spec=export("slow"))
    id = (await stub.SubmitJob(request)).job.id
    answer = await stub.CancelJob(pb.CancelJobRequest(id=id))
    assert answer.job.state == pb.JOB_STATE_CANCELLED


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "export_onnx.model is ''"),
        ({"model": "a b"}, "export_onnx.model is 'a b'"),
        ({"model": "m@"}, "`name@version`"),
        ({"model": "m", "min_cosine": 1.5}, "export_onnx.min_cosine is 1.5"),
        ({"model": "m", "min_cosine": -0.1}, "export_onnx.min_cosine is -0.1"),
        ({"model": "m", "min_cosine_int8": math.nan}, "export_onnx.min_cosine_int8 is nan"),
    ],
)
async def test_bad_specs(stub: Any, settings: dict[str, Any], says: str) -> None:
    spec = pb.JobSpec(export_onnx=pb.ExportOnnx(**settings))
    call = stub.SubmitJob(pb.SubmitJobRequest(spec=spec))
    assert says in await fails(call, InvalidArgument, "BAD_SPEC")


async def test_a_spec_without_a_kind(stub: Any) -> None:
    call = stub.SubmitJob(pb.SubmitJobRequest())
    assert "no kind" in await fails(call, InvalidArgument, "BAD_SPEC")


@pytest.mark.parametrize(
    ("model", "error", "reason"),
    [
        ("none", NotFound, "NO_SUCH_MODEL"),
        ("m@9", NotFound, "NO_SUCH_VERSION"),
        ("llm", FailedPrecondition, "WRONG_FORMAT"),
    ],
)
async def test_bad_sources(stub: Any, model: str, error: type[LLMOSError], reason: str) -> None:
    await fails(stub.SubmitJob(pb.SubmitJobRequest(spec=export(model))), error, reason)
    assert not (await stub.ListJobs(pb.ListJobsRequest())).jobs


async def test_unknown_jobs(stub: Any) -> None:
    await fails(stub.CancelJob(pb.CancelJobRequest(id="x")), NotFound, "NO_SUCH_JOB")

    async def watch() -> None:
        async for _ in stub.WatchJob(pb.WatchJobRequest(id="x")):
            pass

    await fails(watch(), NotFound, "NO_SUCH_JOB")
