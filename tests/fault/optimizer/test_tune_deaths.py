"""kill -9 of fine-tuning, LoRA and distilling between two steps: the same files come out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from optimizer_system import OptimizerSystem, optimizer_system
from train_world import sentences

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.api.storage.v1 import data_pb2, data_pb2_grpc

pytestmark = pytest.mark.timeout(400)  # processes that import torch, on a busy machine
STEP = "train.step.0"
DATA = pb.TrainingData(dataset="lines", tokens=16)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptimizerSystem]:
    """Both servers, lines of words, and `m@1`, a small language model trained on them."""
    folder = tmp_path_factory.mktemp("tune")
    lines = folder / "lines"
    lines.mkdir()
    (lines / "train.txt").write_text("\n".join(sentences(60)))
    (lines / "validation.txt").write_text("\n".join(sentences(12, seed=1)))
    with optimizer_system(folder / "state") as system:
        with grpc.insecure_channel(system.address("storage")) as channel:
            stub = data_pb2_grpc.DatasetsStub(channel)
            request = data_pb2.ImportDatasetRequest(source=str(lines), name="lines")
            list(stub.ImportDataset(request, timeout=60))
        decoder = pb.Transformer(layers=3, width=32, heads=2)
        train = pb.Train(name="m", data=DATA, decoder=decoder, training=training(4))
        train.data.vocabulary = 300
        job = system.watch(system.submit(jobs_pb2.JobSpec(train=train)).id)
        assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error
        yield system


def training(steps: int = 10) -> pb.Training:
    return pb.Training(learning_rate=0.01, batch=8, steps=steps, checkpoint_steps=4)


def tuned(name: str, **how: Any) -> jobs_pb2.JobSpec:
    spec = pb.FineTune(model="m@1", name=name, data=DATA, training=training(), **how)
    return jobs_pb2.JobSpec(fine_tune=spec)


def distilled(name: str) -> jobs_pb2.JobSpec:
    spec = pb.Distil(teacher="m@1", layers=2, name=name, data=DATA, training=training())
    return jobs_pb2.JobSpec(distil=spec)


def lora(name: str) -> jobs_pb2.JobSpec:
    return tuned(name, lora=pb.Lora(rank=2, dropout=0.1))


@pytest.mark.parametrize("make", [tuned, lora, distilled])
def test_killed_and_resumed_it_ends_with_the_same_files(system: OptimizerSystem, make: Any) -> None:
    kind = make.__name__
    whole = system.watch(system.submit(make(f"{kind}-whole")).id)
    system.arm(STEP, 7)  # after the checkpoint of step 4
    broken = system.watch(system.submit(make(f"{kind}-broken")).id)
    assert system.passed(STEP) and (whole.attempts, broken.attempts) == (1, 2)
    system.release(STEP)
    files = []
    for job in (whole, broken):
        assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED, job.error
        (made,) = system.versions(job.results[0].partition("@")[0])
        assert list(made.lineage.parents) == ["m@1"] and made.lineage.job == job.id
        files.append({file.name: file.sha256 for file in made.files})
    assert files[0] == files[1]
    told = [[list(c.measures) for c in job.comparisons] for job in (whole, broken)]
    assert told[0] == told[1]
    before, after = ({m.name: m.value for m in c.measures} for c in broken.comparisons)
    assert after["validation_loss"] < before["validation_loss"]
    if make is not distilled:  # a distance to a teacher is no likelihood
        assert after["perplexity"] == pytest.approx(math.exp(after["validation_loss"]))
        assert after["perplexity"] < before["perplexity"]


def test_bad_specs_end_in_a_sentence(system: OptimizerSystem) -> None:
    wrong = lora("wrong")
    wrong.fine_tune.lora.targets.append("nothing")
    deep = distilled("deep")
    deep.distil.layers = 9
    for spec, says in (
        (wrong, "lora.targets has 'nothing'"),
        (deep, "distil.layers is 9; the teacher has 3 layers"),
    ):
        job = system.watch(system.submit(spec).id)
        assert job.state == jobs_pb2.JOB_STATE_FAILED and says in job.error
        assert not job.results
