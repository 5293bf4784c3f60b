"""kill -9 of the processes of prune, quantise, pipelines: each goes on, once, to the same end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from optimizer_system import OptimizerSystem, optimizer_system
from tiny_text import tiny_bert

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.optimizer.v1.evaluate_pb2 import Evaluate
from llmos.api.storage.v1 import registry_pb2

pytestmark = pytest.mark.timeout(600)  # a job imports torch, which is slow on a busy machine
DATA = pb.Data(rows=16)
RECOVERED = pb.Prune(
    model="m@1", method=pb.PRUNE_METHOD_TWO_OF_FOUR, recovery_steps=400, data=DATA, seed=3
)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptimizerSystem]:
    with optimizer_system(tmp_path_factory.mktemp("kinds")) as system:
        system.import_model(tiny_bert(tmp_path_factory.mktemp("model")), "m")
        yield system


def killed_once(system: OptimizerSystem, spec: jobs_pb2.JobSpec, stage: str) -> jobs_pb2.Job:
    """Run a job and kill its process at a stage; return the job at its end."""
    job = system.submit(spec)
    at = system.watch(job.id, until=lambda job: stage in job.stage and job.pid != 0)
    os.kill(at.pid, signal.SIGKILL)
    return system.watch(job.id)


def test_a_recovery_that_was_killed_ends_with_the_same_weights(system: OptimizerSystem) -> None:
    ends = []
    whole = jobs_pb2.JobSpec(prune=RECOVERED)
    broken = jobs_pb2.JobSpec(prune=RECOVERED)
    broken.prune.name = "broken"
    for job in (
        system.watch(system.submit(whole).id),
        killed_once(system, broken, "recovers: step"),
    ):
        assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error
        ends.append(job)
    assert [job.attempts for job in ends] == [1, 2]
    (ours,) = [v for v in system.versions("m") if f"m@{v.version}" == ends[0].results[0]]
    (theirs,) = system.versions("broken")
    digests = [{f.name: f.sha256 for f in v.files}["model.safetensors"] for v in (ours, theirs)]
    assert digests[0] == digests[1]


def test_layers_measured_before_a_death_are_not_measured_again(system: OptimizerSystem) -> None:
    spec = pb.Quantise(
        model="m@1", method=pb.QUANTISE_METHOD_TORCHAO_INT8, report_layers=True, data=DATA
    )
    job = killed_once(system, jobs_pb2.JobSpec(quantise=spec), "measures layer 4")
    assert (job.state, job.attempts) == (jobs_pb2.JOB_STATE_SUCCEEDED, 2), job.error
    assert len(next(c for c in job.comparisons if c.label == "torchao-int8").layers) > 8
    assert len(job.results) == 1


def test_a_pipeline_that_was_killed_does_each_step_once(system: OptimizerSystem) -> None:
    steps = [
        jobs_pb2.JobSpec(prune=pb.Prune(data=DATA, name="chain")),
        jobs_pb2.JobSpec(evaluate=Evaluate(data=DATA, skip_speed=True)),
    ]
    promotion = jobs_pb2.Promotion(alias="prod", canary="canary")
    spec = jobs_pb2.Pipeline(model="m@1", steps=steps, promotion=promotion)
    job = killed_once(system, jobs_pb2.JobSpec(pipeline=spec), "job ")
    assert (job.state, job.attempts) == (jobs_pb2.JOB_STATE_SUCCEEDED, 2), job.error
    (made,) = system.versions("chain")
    assert list(job.results) == ["chain@1"] and list(made.lineage.parents) == ["m@1"]
    labels = [c.label for c in job.comparisons]
    assert "1 prune: pruned-magnitude" in labels and "2 evaluate: version 2" in labels
    with system.registry() as stub:
        found = stub.GetVersion(registry_pb2.GetVersionRequest(ref="chain@prod"), timeout=20)
        assert sorted(found.version.aliases) == ["canary", "prod"]
