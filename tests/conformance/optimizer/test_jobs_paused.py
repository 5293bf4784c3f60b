"""Pausing, resuming, logs and artefacts of jobs: the contract, in process and over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from job_core import export, reaches, running

from llmos.api.optimizer.v1 import jobs_pb2 as pb
from llmos.api.optimizer.v1 import jobs_pb2_grpc
from llmos.lib.errors import FailedPrecondition, LLMOSError, NotFound
from llmos.lib.rpc import ErrorInterceptor, from_exception
from llmos.servers.optimizer.core import Jobs
from llmos.servers.optimizer.service import JobsService


class InProcess:
    """Calls a servicer as gRPC would, without it."""

    def __init__(self, servicer: JobsService) -> None:
        self._servicer = servicer

    def __getattr__(self, name: str) -> Any:
        return lambda request: getattr(self._servicer, name)(request, None)


@pytest.fixture(params=["in process", "gRPC"])
async def world(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[Any, Jobs, Path]]:
    async with running(tmp_path) as core:
        service = JobsService(core)
        if request.param == "in process":
            yield InProcess(service), core, tmp_path
            return
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        jobs_pb2_grpc.add_JobsServicer_to_server(service, server)
        server.add_insecure_port(f"unix:{tmp_path}/grpc.sock")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/grpc.sock") as channel:
            yield jobs_pb2_grpc.JobsStub(channel), core, tmp_path
        await server.stop(0)


async def submit(stub: Any, model: str) -> str:
    job = (await stub.SubmitJob(pb.SubmitJobRequest(spec=export(model)))).job
    assert list(job.sources) == [f"{model}@1"]
    return str(job.id)


async def fails(call: Any, error: type[LLMOSError], reason: str) -> str:
    with pytest.raises((LLMOSError, grpc.RpcError)) as caught:
        await call
    found = from_exception(caught.value)
    assert (type(found), found.reason) == (error, reason)
    return found.message


async def test_a_paused_job_frees_its_place_and_goes_on_later(
    world: tuple[Any, Jobs, Path],
) -> None:
    stub, core, state = world
    slow = await submit(stub, "slow")
    await reaches(core, slow, "works")
    good = await submit(stub, "good")
    paused = (await stub.PauseJob(pb.PauseJobRequest(id=slow))).job
    assert ("slow@1", f"job {slow}") in core.needed()  # nobody deletes what it will go on with
    assert (paused.state, paused.pid, paused.stage) == (pb.JOB_STATE_PAUSED, 0, "paused")
    assert (state / "jobs" / slow / "work" / "scratch").exists()
    async for answer in stub.WatchJob(pb.WatchJobRequest(id=good)):
        last = answer.job
    assert last.state == pb.JOB_STATE_SUCCEEDED
    again = (await stub.PauseJob(pb.PauseJobRequest(id=slow))).job
    assert again == paused
    resumed = (await stub.ResumeJob(pb.ResumeJobRequest(id=slow))).job
    assert resumed.state == pb.JOB_STATE_QUEUED
    await reaches(core, slow, "works")
    assert (await stub.ResumeJob(pb.ResumeJobRequest(id=slow))).job.attempts == 2
    await stub.PauseJob(pb.PauseJobRequest(id=slow))
    cancelled = (await stub.CancelJob(pb.CancelJobRequest(id=slow))).job
    assert cancelled.state == pb.JOB_STATE_CANCELLED and not core.needed()
    for call in (
        stub.PauseJob(pb.PauseJobRequest(id=slow)),
        stub.ResumeJob(pb.ResumeJobRequest(id=slow)),
    ):
        assert "has ended (cancelled)" in await fails(call, FailedPrecondition, "JOB_ENDED")


async def test_a_queued_job_can_be_paused(world: tuple[Any, Jobs, Path]) -> None:
    stub, _, _ = world
    await submit(stub, "slow")
    waiting = await submit(stub, "good")
    paused = (await stub.PauseJob(pb.PauseJobRequest(id=waiting))).job
    assert (paused.state, paused.attempts) == (pb.JOB_STATE_PAUSED, 0)


async def test_logs_and_artefacts(world: tuple[Any, Jobs, Path]) -> None:
    stub, core, state = world
    id = await submit(stub, "slow")
    await reaches(core, id, "works")
    folder = state / "jobs" / id
    (folder / "job.log").write_text("".join(f"line {i}\n" for i in range(1000)))
    request = pb.ReadJobLogRequest(id=id, lines=2)
    assert await read(stub.ReadJobLog(request)) == b"line 998\nline 999\n"
    whole = await read(stub.ReadJobLog(pb.ReadJobLogRequest(id=id)))
    assert whole.startswith(b"line 0\n") and len(whole.splitlines()) == 1000
    assert not (await stub.ListArtifacts(pb.ListArtifactsRequest(id=id))).artifacts
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "a.json").write_bytes(bytes(600_000))
    found = (await stub.ListArtifacts(pb.ListArtifactsRequest(id=id))).artifacts
    assert [(a.name, a.size) for a in found] == [("a.json", 600_000)]
    whole = await read(stub.ReadArtifact(pb.ReadArtifactRequest(id=id, name="a.json")))
    assert len(whole) == 600_000
    for name in ("b", "../job.pb"):
        call = read(stub.ReadArtifact(pb.ReadArtifactRequest(id=id, name=name)))
        assert "it has a.json" in await fails(call, NotFound, "NO_SUCH_ARTIFACT")
    await fails(stub.PauseJob(pb.PauseJobRequest(id="x")), NotFound, "NO_SUCH_JOB")
    await fails(read(stub.ReadJobLog(pb.ReadJobLogRequest(id="x"))), NotFound, "NO_SUCH_JOB")


async def read(call: Any) -> bytes:
    return b"".join([piece.data async for piece in call])
