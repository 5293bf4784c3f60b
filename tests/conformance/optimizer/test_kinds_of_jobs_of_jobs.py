"""Pipelines and searches: their steps really run, in this process, on a real storage."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from job_world import World, world
from tiny_text import tiny_bert

from llmos.api.optimizer.v1 import compress_pb2 as pb
from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.optimizer.v1.evaluate_pb2 import Evaluate
from llmos.api.optimizer.v1.measure_pb2 import Gate
from llmos.lib.errors import Aborted, FailedPrecondition

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries about themselves
DATA = pb.Data(rows=12)
MEASURE = Evaluate(data=DATA, skip_speed=True)


@pytest.fixture
async def models(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        await found.import_model(tiny_bert(tmp_path / "m"), "m")
        yield found


def prune(amount: float) -> jobs_pb2.JobSpec:
    return jobs_pb2.JobSpec(prune=pb.Prune(amount=amount, data=DATA))


def pipeline(promotion: jobs_pb2.Promotion) -> jobs_pb2.JobSpec:
    steps = [prune(0.1), prune(0.3), jobs_pb2.JobSpec(evaluate=MEASURE)]
    return jobs_pb2.JobSpec(pipeline=jobs_pb2.Pipeline(model="m", steps=steps, promotion=promotion))


async def test_a_pipeline_has_an_edge_for_each_step_and_moves_an_alias(models: World) -> None:
    gate = Gate(measure="cosine_mean", most_loss=0.5)
    promotion = jobs_pb2.Promotion(alias="prod", canary="canary", gates=[gate])
    done = await models.run(pipeline(promotion), id="chain")
    assert done.results == ["m@2", "m@3"]
    assert list((await models.version("m@3")).lineage.parents) == ["m@2"]
    assert list((await models.version("m@2")).lineage.parents) == ["m@1"]
    assert sorted((await models.version("m@prod")).aliases) == ["canary", "prod"]
    measured = models.jobs.submitted[-1].evaluate
    assert list(measured.models) == ["m@1", "m@3"]
    assert done.comparisons["3 evaluate: version 2"].ref == "m@3"
    await models.run(pipeline(promotion), id="chain")  # as after a death: nothing is done twice
    assert len(models.jobs.submitted) == 3


async def test_a_closed_gate_moves_nothing(models: World) -> None:
    gate = Gate(measure="cosine_mean", least=1.5)
    with pytest.raises(FailedPrecondition) as caught:
        await models.run(pipeline(jobs_pb2.Promotion(alias="prod", gates=[gate])))
    assert caught.value.reason == "GATE_CLOSED" and "m@3 was made" in caught.value.message
    assert not (await models.version("m@3")).aliases


async def test_a_step_that_fails_ends_the_pipeline(models: World) -> None:
    export = jobs_pb2.JobSpec(export=pb.Export(format=pb.EXPORT_FORMAT_SAFETENSORS))
    spec = jobs_pb2.Pipeline(model="m", steps=[prune(0.1), export])
    with pytest.raises(Aborted) as caught:
        await models.run(jobs_pb2.JobSpec(pipeline=spec))
    assert "Step 2, export," in caught.value.message and "takes gguf" in caught.value.message


async def test_a_search_finds_the_front_and_keeps_only_that(models: World) -> None:
    options = [jobs_pb2.JobSpec(), prune(0.2), prune(0.9)]
    search = jobs_pb2.Search(
        model="m",
        choices=[jobs_pb2.Choice(name="prune", options=options)],
        evaluate=MEASURE,
        objectives=["cosine_mean", "size"],
        gates=[Gate(measure="cosine_mean", most=0.99999)],  # so that something has to go
        trials=8,
        seed=4,
        alias="best",
    )
    done = await models.run(jobs_pb2.JobSpec(search=search))
    trials = json.loads(done.artifact("trials.json").read_text())
    assert len(trials) == 8 and {t["choices"]["prune"] for t in trials} >= {"prune[1]", "none[0]"}
    (best,) = {t["ref"] for t in trials if t["front"]}
    assert done.comparisons["front 1"].ref == best
    assert (await models.version("m@best")).aliases == ["best"]
    worse = {ref for t in trials if not t["front"] for ref in t["made"]}
    for ref in worse:
        with pytest.raises(Exception, match="version"):
            await models.version(ref)
    page = done.artifact("report.html").read_text()
    assert 'alt="front"' in page and all(f"{t['trial']} {t['ref']}<" in page for t in trials[:1])
    assert "12 rows of" in page
