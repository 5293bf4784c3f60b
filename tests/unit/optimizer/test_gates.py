"""Gates on figures; figures by streaming; specs of pipelines and searches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llmos.api.optimizer.v1 import jobs_pb2 as pb
from llmos.api.optimizer.v1 import train_pb2
from llmos.api.optimizer.v1.compress_pb2 import Data, Export, Prune, Quantise
from llmos.api.optimizer.v1.evaluate_pb2 import Evaluate
from llmos.api.optimizer.v1.measure_pb2 import Gate
from llmos.lib.errors import InvalidArgument
from llmos.servers.optimizer.job import figures
from llmos.servers.optimizer.kinds import table


@pytest.mark.parametrize(
    ("gate", "holds"),
    [
        (Gate(measure="f1", least=0.9), True),
        (Gate(measure="f1", least=0.95), False),
        (Gate(measure="f1", most_loss=0.02), True),
        (Gate(measure="f1", most_loss=0.005), False),
        (Gate(measure="latency_p50", most=5), True),
        (Gate(measure="latency_p50", most_loss=-1), True),  # at least 1 ms faster
        (Gate(measure="latency_p50", most_loss=-3), False),
        (Gate(measure="auc", least=0.5), False),  # not measured
        (Gate(measure="loss", most=1), False),  # NaN never holds
        (Gate(measure="loss", most_loss=1), False),
    ],
)
def test_gates(gate: Gate, holds: bool) -> None:
    now = {"f1": 0.91, "latency_p50": 4.0, "loss": math.nan}
    before = {"f1": 0.92, "latency_p50": 6.0, "loss": 1.0}
    assert (figures.closed([gate], now, before) == "") == holds


def test_sums_over_batches_are_those_of_the_whole() -> None:
    random = np.random.default_rng(0)
    source = random.normal(size=(40, 7)).astype(np.float32)
    out = source + random.normal(0, 0.1, source.shape).astype(np.float32)
    sums = figures.Sums("classify")
    for at in range(0, 40, 8):
        sums.add(out[at : at + 8], source[at : at + 8])
    found = sums.figures()
    whole = np.linalg.norm(out.astype(np.float64) - source) / np.linalg.norm(source)
    assert found["relative_error"] == pytest.approx(whole, rel=1e-6)
    assert found["max_abs_difference"] == pytest.approx(float(np.abs(out - source).max()))
    assert found["argmax_agreement"] == float((out.argmax(1) == source.argmax(1)).mean())
    sums.add(np.full((1, 7), math.nan, np.float32), source[:1])
    assert math.isnan(sums.figures()["relative_error"])


STEP = pb.JobSpec(prune=Prune())
EXPORT = pb.JobSpec(export=Export())


def pipeline(*steps: pb.JobSpec, **settings: Any) -> pb.JobSpec:
    return pb.JobSpec(pipeline=pb.Pipeline(**{"model": "m", **settings}, steps=steps))


def search(**settings: Any) -> pb.JobSpec:
    usual = {"model": "m", "choices": [pb.Choice(name="a", options=[STEP])], "objectives": ["f1"]}
    return pb.JobSpec(search=pb.Search(**{**usual, **settings}))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (pipeline(), "pipeline.steps has 0 steps"),
        (pipeline(STEP, model=""), "pipeline.model is ''"),
        (pipeline(pb.JobSpec(prune=Prune(model="x"))), "steps[0].prune.model is set"),
        (pipeline(EXPORT, pb.JobSpec(prune=Prune(amount=2))), "steps[1]: prune.amount is 2"),
        (pipeline(pb.JobSpec()), "steps[0] has the kind 'none'"),
        (pipeline(STEP, pb.JobSpec(train=train_pb2.Train())), "only the first step can"),
        (pipeline(pipeline(STEP)), "has the kind 'pipeline'"),
        (pipeline(STEP, promotion=pb.Promotion(alias="1")), "promotion.alias is '1'"),
        (
            pipeline(STEP, promotion=pb.Promotion(alias="prod", max_failed=2)),
            "promotion.max_failed is 2",
        ),
        (search(choices=[]), "search.choices is empty"),
        (search(choices=[pb.Choice(options=[STEP])]), "each needs a name"),
        (search(choices=[pb.Choice(name="a")]), "a has no options"),
        (search(objectives=[]), "search.objectives has 0"),
        (search(trials=501), "search.trials is 501"),
        (search(evaluate=Evaluate(models=["m"])), "search.evaluate.models is set"),
        (
            search(
                choices=[pb.Choice(name="q", options=[pb.JobSpec(quantise=Quantise(model="x"))])]
            ),
            "choices.q[0].quantise.model is set",
        ),
    ],
)
def test_bad_chains(spec: pb.JobSpec, says: str) -> None:
    kind, message = table.find(spec)
    with pytest.raises(InvalidArgument) as caught:
        kind.check(message)
    assert caught.value.reason == "BAD_SPEC" and says in caught.value.message


def test_chains_need_what_their_steps_need() -> None:
    measured = Data(dataset="rows@2")
    spec = pipeline(STEP, pb.JobSpec(evaluate=Evaluate(data=measured)))
    kind, message = table.find(spec)
    needs = kind.check(message)
    assert (needs.models, needs.datasets) == (["m"], ["rows@2"]) and kind.orchestrates
