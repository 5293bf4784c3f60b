"""kill -9 of trainings: of a job, of one of its processes; pausing. The weights stay the same."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch
from optimizer_system import OptimizerSystem, optimizer_system
from safetensors.torch import load_file

from llmos.api.optimizer.v1 import jobs_pb2 as pb
from llmos.api.optimizer.v1 import train_pb2
from llmos.api.storage.v1 import data_pb2, data_pb2_grpc
from llmos.servers.optimizer.train.budget import Budgets

STEPS = 40
pytestmark = pytest.mark.timeout(400)  # processes that import torch, on a busy machine
ROWS = [(x, y) for x in range(-4, 5) for y in range(-4, 5)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptimizerSystem]:
    folder = tmp_path_factory.mktemp("train")
    table = folder / "plane.csv"
    table.write_text("a,b,z\n" + "".join(f"{x},{y},{x * y / 4}\n" for x, y in ROWS))
    with optimizer_system(folder / "state") as system:
        with grpc.insecure_channel(system.address("storage")) as channel:
            stub = data_pb2_grpc.DatasetsStub(channel)
            request = data_pb2.ImportDatasetRequest(source=str(table), name="plane")
            list(stub.ImportDataset(request, timeout=60))
        yield system


def spec(name: str, steps: int = STEPS, **distribution: Any) -> pb.JobSpec:
    return pb.JobSpec(
        train=train_pb2.Train(
            name=name,
            data=train_pb2.TrainingData(dataset="plane", target="z"),
            mlp=train_pb2.Mlp(hidden=[16, 16], regress=True),
            training=train_pb2.Training(
                method=train_pb2.METHOD_SGD,
                momentum=0.9,
                learning_rate=0.003,
                batch=27,
                steps=steps,
                checkpoint_steps=8,
                max_gradient_norm=5,
            ),
            distribution=train_pb2.Distribution(**distribution),
        )
    )


@pytest.fixture(scope="module")
def whole(system: OptimizerSystem) -> pb.Job:
    """The training that nothing happened to."""
    return system.watch(system.submit(spec("whole")).id)


def weights(system: OptimizerSystem, job: pb.Job) -> dict[str, torch.Tensor]:
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    (made,) = system.versions(job.results[0].partition("@")[0])
    assert list(made.lineage.datasets) == ["plane@1"] and made.lineage.job == job.id
    file = next(f for f in made.files if f.name == "model.safetensors")
    found: dict[str, torch.Tensor] = load_file(Path(file.path))
    return found


def nearly(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], most: float) -> bool:
    return a.keys() == b.keys() and all((a[n] - b[n]).abs().max() <= most for n in a)


def test_paused_killed_and_resumed_a_training_ends_with_the_same_bits(
    system: OptimizerSystem, whole: pb.Job
) -> None:
    step = "train.step.0"
    system.arm(step, 13, wait=True)
    broken = system.submit(spec("broken"))
    with system.jobs() as stub:
        system.until_passed(step)
        pausing = stub.PauseJob.future(pb.PauseJobRequest(id=broken.id), timeout=60)
        system.watch(broken.id, until=lambda job: job.stage == "stops after this step")
        system.release(step)
        paused = pausing.result().job
        assert (paused.state, paused.pid) == (pb.JOB_STATE_PAUSED, 0)
        assert system.job_pids() == []
        assert stub.PauseJob(pb.PauseJobRequest(id=broken.id)).job.state == pb.JOB_STATE_PAUSED
        system.arm(step, 14)  # in all 27: after the checkpoint of 24
        stub.ResumeJob(pb.ResumeJobRequest(id=broken.id))
    done = system.watch(broken.id)
    assert system.passed(step) and done.attempts == 3 and done.training.step == STEPS
    system.release(step)
    assert nearly(weights(system, whole), weights(system, done), 0)
    with system.jobs() as stub:
        names = stub.ListArtifacts(pb.ListArtifactsRequest(id=done.id)).artifacts
        assert [artifact.name for artifact in names] == ["training.jsonl"]
        log = stub.ReadJobLog(pb.ReadJobLogRequest(id=done.id, lines=3))
        assert b"".join(piece.data for piece in log).count(b"\n") == 3


def test_two_processes_do_what_one_does_also_when_one_is_killed(
    system: OptimizerSystem, whole: pb.Job
) -> None:
    system.arm("train.step.1", 13)
    done = system.watch(system.submit(spec("two", processes=2)).id)
    assert system.passed("train.step.1") and done.attempts == 1
    assert nearly(weights(system, whole), weights(system, done), 1e-5)


def test_shards_do_what_one_process_does_and_a_killed_job_leaves_no_process(
    system: OptimizerSystem, whole: pb.Job
) -> None:
    step = "train.step.0"
    system.arm(step, 13, wait=True)
    sharded = system.submit(spec("sharded", processes=2, shard=True))
    system.until_passed(step)
    running = system.watch(sharded.id, until=lambda job: job.pid != 0)
    children = psutil.Process(running.pid).children(recursive=True)
    assert len(children) == 3
    os.kill(running.pid, signal.SIGKILL)
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert len(gone) == 3 and not alive
    system.release(step)
    done = system.watch(sharded.id)
    assert done.attempts == 2
    assert nearly(weights(system, whole), weights(system, done), 1e-5)


def test_a_diverging_job_and_a_bad_column_end_it_in_a_sentence(system: OptimizerSystem) -> None:
    wild = spec("wild")
    wild.train.training.method = train_pb2.METHOD_SGD
    wild.train.training.max_gradient_norm = 0
    wild.train.training.learning_rate = 1000
    ended = system.watch(system.submit(wild).id)
    assert ended.state == pb.JOB_STATE_FAILED and "at step" in ended.error
    bad = spec("bad", 10)
    bad.train.data.target = "q"
    ended = system.watch(system.submit(bad).id)
    assert ended.state == pb.JOB_STATE_FAILED
    assert "train.data.target 'q' is no column; there are a, b, z" in ended.error


async def test_a_private_job_that_is_killed_spends_its_epsilon_once(
    system: OptimizerSystem,
) -> None:
    def private(name: str, epsilon: float) -> pb.JobSpec:
        made = spec(name)
        made.train.privacy.epsilon = epsilon
        return made

    system.arm("train.step.0", 13)
    job = system.submit(private("private", 3))
    done = system.watch(job.id)
    assert system.passed("train.step.0")
    system.release("train.step.0")
    assert (done.state, done.attempts) == (pb.JOB_STATE_SUCCEEDED, 2), done.error
    (made,) = system.versions("private")
    told = {metric.name: metric.value for metric in made.metrics}["privacy_epsilon"]
    refused = system.watch(system.submit(private("greedy", 8)).id)
    said = r"spend epsilon (8|7\.9\d*) of plane@1, and 7(\.\d+)? of 10 is left"
    assert refused.state == pb.JOB_STATE_FAILED and re.search(said, refused.error), refused.error
    async with grpc.aio.insecure_channel(system.address("storage")) as channel:
        budget = await Budgets(channel).get("plane@1")
    assert budget.jobs == {job.id: pytest.approx(told)} and 2.9 < told <= 3
