"""Bad specs of the kinds that train: refused when they are submitted, with the field's name."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.optimizer.kinds import table

DATA = pb.TrainingData(dataset="d")


def train(**settings: Any) -> jobs_pb2.JobSpec:
    usual = {"name": "m", "data": DATA, "linear": pb.Linear()}
    return jobs_pb2.JobSpec(train=pb.Train(**{**usual, **settings}))


def tune(**settings: Any) -> jobs_pb2.JobSpec:
    return jobs_pb2.JobSpec(fine_tune=pb.FineTune(**{"model": "m", "data": DATA, **settings}))


def distil(**settings: Any) -> jobs_pb2.JobSpec:
    usual = {"teacher": "m", "layers": 2, "data": DATA}
    return jobs_pb2.JobSpec(distil=pb.Distil(**{**usual, **settings}))


def test_the_usual_ones_are_taken() -> None:
    for spec in (train(), tune(), distil()):
        kind, message = table.find(spec)
        assert kind.check(message).datasets == ["d"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (train(data=pb.TrainingData(dataset="d", tokens=3)), "tokens is 3; it must be 8 to"),
        (train(training=pb.Training(learning_rate=-1)), "train.training.learning_rate is -1"),
        (train(training=pb.Training(momentum=0.9)), "momentum is of METHOD_SGD"),
        (train(training=pb.Training(precision=9)), "precision is 9, which this version lacks"),  # type: ignore[arg-type]
        (train(name="a" * 300), "of 300 characters; use at most 128"),
        (train(training=pb.Training(batch=4, accumulate=8)), "accumulate is more than the 4 rows"),
        (train(distribution=pb.Distribution(processes=2000)), "processes is 2000; at most"),
        (train(distribution=pb.Distribution(processes=33)), "more than the rows of training.batch"),
        (train(distribution=pb.Distribution(shard=True)), "shard needs"),
        (train(privacy=pb.Privacy()), "epsilon is 0; it must be more than 0"),
        (
            train(privacy=pb.Privacy(epsilon=1), distribution=pb.Distribution(processes=2)),
            "distribution.processes must be 1 with privacy",
        ),
        (tune(data=pb.TrainingData(dataset="d", vocabulary=999)), "is the source's own"),
        (tune(model="a b"), "fine_tune.model is 'a b'"),
        (distil(layers=0), "distil needs either student"),
        (distil(layers=999), "distil.layers is 999"),
        (distil(soft_weight=2), "distil.soft_weight is 2"),
    ],
)
def test_bad_ones(spec: jobs_pb2.JobSpec, says: str) -> None:
    kind, message = table.find(spec)
    with pytest.raises(InvalidArgument) as caught:
        kind.check(message)
    assert caught.value.reason == "BAD_SPEC" and says in caught.value.message
