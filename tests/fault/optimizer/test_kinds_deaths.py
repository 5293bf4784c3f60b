"""kill -9 of the processes of prune, quantise, pipelines: each goes on, once, to the same end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from optimizer_system import OptimizerSystem, optimizer_system
from tiny_text import tiny_bert

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.api.optimizer.v1 import jobs_pb2, measure_pb2
from llmos.api.optimizer.v1.evaluate_pb2 import Evaluate
from llmos.api.storage.v1 import registry_pb2

pytestmark = pytest.mark.timeout(600)  # a job imports torch, which is slow on a busy machine
DATA = pb.Data(rows=8)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptimizerSystem]:
    with optimizer_system(tmp_path_factory.mktemp("kinds")) as system:
        system.import_model(tiny_bert(tmp_path_factory.mktemp("model")), "m")
        yield system


def killed(
    system: OptimizerSystem, spec: jobs_pb2.JobSpec, at: str, count: int = 1
) -> jobs_pb2.Job:
    """Run a job whose process dies once, at a failpoint; return it at its end."""
    system.arm(at, count)
    job = system.watch(system.submit(spec).id)
    assert system.passed(at) and job.attempts == 2
    system.release(at)
    return job


def weights(system: OptimizerSystem, name: str) -> dict[str, str]:
    """Return the digests of all files of the only version of a model."""
    (made,) = system.versions(name)
    assert list(made.lineage.parents) == ["m@1"]
    return {file.name: file.sha256 for file in made.files}


def test_a_recovery_that_was_killed_ends_with_the_same_weights(system: OptimizerSystem) -> None:
    def prune(name: str) -> jobs_pb2.JobSpec:
        method = pb.PRUNE_METHOD_TWO_OF_FOUR
        spec = pb.Prune(model="m@1", method=method, recovery_steps=25, data=DATA, seed=3, name=name)
        return jobs_pb2.JobSpec(prune=spec)

    whole = system.watch(system.submit(prune("whole")).id)
    broken = killed(system, prune("broken"), "recovery.step", 14)  # the checkpoint is that of 10
    for job in (whole, broken):
        assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error
    assert weights(system, "whole") == weights(system, "broken")


def test_layers_measured_before_a_death_are_not_measured_again(system: OptimizerSystem) -> None:
    spec = pb.Quantise(
        model="m@1",
        method=pb.QUANTISE_METHOD_TORCHAO_INT8,
        report_layers=True,
        data=DATA,
        name="int8",
    )
    system.arm("job measures layer 1 of 13", 2)  # it must not be passed twice
    job = killed(system, jobs_pb2.JobSpec(quantise=spec), "job measures layer 4 of 13")
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error
    assert not system.passed("job measures layer 1 of 13")
    assert len(next(c for c in job.comparisons if c.label == "torchao-int8").layers) == 13
    assert job.results == ["int8@1"] and weights(system, "int8")


def test_an_export_that_was_killed_is_written_and_registered_once(system: OptimizerSystem) -> None:
    for name, at in (
        ("compared", "job compares the torchscript version"),
        ("registered", "job.registered"),
    ):
        spec = pb.Export(model="m@1", format=pb.EXPORT_FORMAT_TORCHSCRIPT, data=DATA, name=name)
        job = killed(system, jobs_pb2.JobSpec(export=spec), at)
        assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error
        assert job.results == [f"{name}@1"]
    one, other = weights(system, "compared"), weights(system, "registered")
    assert one["config.json"] == other["config.json"]


def test_an_evaluation_that_was_killed_ends_with_the_same_figures(system: OptimizerSystem) -> None:
    spec = jobs_pb2.JobSpec(evaluate=Evaluate(models=["m@1", "m@1"], data=DATA, skip_speed=True))
    whole = system.watch(system.submit(spec).id)
    broken = killed(system, spec, "job measures m@1", 2)
    assert broken.state == jobs_pb2.JOB_STATE_SUCCEEDED, broken.error
    assert whole.comparisons == broken.comparisons


def test_a_pipeline_that_was_killed_does_each_step_once(system: OptimizerSystem) -> None:
    steps = [
        jobs_pb2.JobSpec(prune=pb.Prune(data=DATA, name="chain")),
        jobs_pb2.JobSpec(evaluate=Evaluate(data=DATA, skip_speed=True)),
    ]
    promotion = jobs_pb2.Promotion(alias="prod", canary="canary")
    spec = jobs_pb2.Pipeline(model="m@1", steps=steps, promotion=promotion)
    job = killed(system, jobs_pb2.JobSpec(pipeline=spec), "job.submitted step-2")
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error
    assert job.results == ["chain@1"] and weights(system, "chain")
    labels = [c.label for c in job.comparisons]
    assert "1 prune: pruned-magnitude" in labels and "2 evaluate: version 2" in labels
    with system.registry() as stub:
        found = stub.GetVersion(registry_pb2.GetVersionRequest(ref="chain@prod"), timeout=20)
        assert sorted(found.version.aliases) == ["canary", "prod"]


def test_a_search_that_was_killed_finds_the_trials_that_it_made(system: OptimizerSystem) -> None:
    def search(name: str) -> jobs_pb2.JobSpec:
        prune = pb.Prune(amount=0.3, data=DATA, name=name)
        options = [jobs_pb2.JobSpec(), jobs_pb2.JobSpec(prune=prune)]
        spec = jobs_pb2.Search(
            model="m@1",
            choices=[jobs_pb2.Choice(name="prune", options=options)],
            evaluate=Evaluate(data=DATA, skip_speed=True),
            objectives=["cosine_mean"],
            gates=[measure_pb2.Gate(measure="cosine_mean", least=0.1)],
            trials=3,
            seed=0,  # takes both options
        )
        return jobs_pb2.JobSpec(search=spec)

    job = killed(system, search("found"), "job.submitted trial-2")
    assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error
    with system.jobs() as stub:
        listed = stub.ListJobs(jobs_pb2.ListJobsRequest(), timeout=20).jobs
    assert [j.spec.prune.name for j in listed].count("found") == 1  # trial 2, submitted twice
