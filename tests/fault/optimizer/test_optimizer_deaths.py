"""kill -9 of job, job server and storage while a real export of a small encoder runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from optimizer_system import OptimizerSystem, export_spec, optimizer_system
from tiny_text import tiny_bert

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.storage.v1 import registry_pb2

EXPORTS = "job exports the source"
MEASURES = "job measures the source"
REGISTERS = "job registers the ONNX version"
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptimizerSystem]:
    with optimizer_system(tmp_path_factory.mktemp("optimizer")) as system:
        yield system


def test_everything_is_killed_once_and_the_job_goes_on(
    system: OptimizerSystem, tmp_path: Path
) -> None:
    source = system.import_model(tiny_bert(tmp_path / "m"), "m")
    spec = export_spec("m", min_cosine_int8=0.9999999)  # more than int8 can do
    system.arm(EXPORTS)  # the job dies there and is started again
    system.arm(MEASURES, wait=True)
    job = system.submit(spec, request_id="r")
    system.until_passed(MEASURES)
    system.release(EXPORTS)
    second = system.watch(job.id, until=lambda job: job.pid != 0)
    assert second.attempts == 2

    system.kill("optimizer")  # the job server: its job goes on, the next server adopts it
    assert system.job_pids() == [second.pid]
    system.start("optimizer")
    assert system.submit(spec, request_id="r").id == job.id
    adopted = system.watch(job.id, until=lambda job: job.pid != 0)
    assert adopted.pid == second.pid

    system.arm(REGISTERS, wait=True)
    system.release(MEASURES)
    system.until_passed(REGISTERS)
    system.kill("storage")
    system.release(REGISTERS)  # the job waits for storage
    system.start("storage")

    done = system.watch(job.id)
    assert (done.state, done.attempts) == (jobs_pb2.JOB_STATE_FAILED, 2)
    assert "int8 version is too far" in done.error and "at least 0.9999999 was" in done.error
    assert list(done.results) == ["m@2"]
    assert [c.label for c in done.comparisons] == ["original", "onnx", "onnx-int8"]
    assert [c.ref for c in done.comparisons] == [source, "m@2", ""]
    versions = system.versions("m")
    assert [v.version for v in versions] == [1, 2]
    assert (versions[1].format, versions[1].task) == (
        registry_pb2.FORMAT_ONNX,
        registry_pb2.TASK_EMBED,
    )
    assert list(versions[1].lineage.parents) == [source]
    assert system.job_pids() == []


def test_a_cancelled_job_leaves_nothing(system: OptimizerSystem, tmp_path: Path) -> None:
    system.import_model(tiny_bert(tmp_path / "cancelled", seed=2), "cancelled")
    system.arm(EXPORTS, wait=True)
    job = system.submit(export_spec("cancelled"))
    system.until_passed(EXPORTS)
    with system.jobs() as stub:
        answer = stub.CancelJob(jobs_pb2.CancelJobRequest(id=job.id), timeout=60).job
    assert answer.state == jobs_pb2.JOB_STATE_CANCELLED
    assert system.job_pids() == []
    assert [v.version for v in system.versions("cancelled")] == [1]
    assert not (Path(answer.log).parent / "work").exists()
