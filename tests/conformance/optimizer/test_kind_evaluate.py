"""Evaluate: real encoders and data against scikit-learn's own answers; the report's files."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_world import World, world
from tiny_text import tiny_bert

from llmos.api.optimizer.v1 import compress_pb2, jobs_pb2
from llmos.api.optimizer.v1 import evaluate_pb2 as pb
from llmos.api.optimizer.v1.measure_pb2 import Gate
from llmos.lib.errors import FailedPrecondition, InvalidArgument, LLMOSError
from llmos.servers.optimizer.job.evaluate import quality

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries about themselves


@pytest.fixture
async def models(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        await found.import_model(tiny_bert(tmp_path / "m"), "m")
        await found.import_model(tiny_bert(tmp_path / "other", seed=1), "other")
        rows = [{"text": f"{word} number {i}", "label": word} for i in range(8) for word in "ab"]
        await found.import_rows("words", {"train": rows[:4], "test": rows})
        yield found


def evaluate(**settings: Any) -> jobs_pb2.JobSpec:
    return jobs_pb2.JobSpec(
        evaluate=pb.Evaluate(**{"models": ["m@1", "other@1"], "skip_speed": True, **settings})
    )


async def test_encoders_beside_each_other(models: World) -> None:
    done = await models.run(evaluate(skip_speed=False, data=compress_pb2.Data(rows=20)))
    assert abs(done.figures("original")["cosine_mean"] - 1) < 1e-5
    assert done.figures("version 2")["cosine_mean"] < 0.9
    assert done.figures("version 2")["latency_one"] > 0  # no execution server: measured here
    report = json.loads(done.artifact("report.json").read_text())
    assert [v["ref"] for v in report["versions"]] == ["m@1", "other@1"] and report["rows"] == 20
    assert done.artifact("report.png").read_bytes().startswith(b"\x89PNG")
    page = done.artifact("report.html").read_text()
    assert "other@1" in page and "cosine_mean" in page and 'class="worse"' in page


async def test_a_gate(models: World) -> None:
    gate = Gate(measure="cosine_mean", most_loss=0.01)
    with pytest.raises(FailedPrecondition) as caught:
        await models.run(evaluate(gates=[gate], data=compress_pb2.Data(rows=8)))
    assert caught.value.reason == "GATE_CLOSED" and "other@1: cosine_mean went" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"models": []}, InvalidArgument, "evaluate.models has 0 models"),
        ({"labels": "label"}, InvalidArgument, "need evaluate.data.dataset"),
        (
            {"data": compress_pb2.Data(dataset="words", input="no")},
            InvalidArgument,
            "has no column 'no'; it has text, label",
        ),
        (
            {"data": compress_pb2.Data(dataset="words", split="no")},
            InvalidArgument,
            "has no split 'no'; it has train, test",
        ),
        ({"max_tokens": 5000}, InvalidArgument, "evaluate.max_tokens is 5000"),
        ({"beams": 17}, InvalidArgument, "evaluate.beams is 17; at most 16"),
    ],
)
async def test_bad_specs(
    models: World, settings: dict[str, Any], error: type[LLMOSError], says: str
) -> None:
    with pytest.raises(error) as caught:
        await models.run(evaluate(**settings))
    assert says in caught.value.message


def test_figures_of_classes_are_those_known() -> None:
    chances = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], np.float32)
    figures, matrix = quality.classification(
        chances, ["ham", "spam", "spam", "spam"], ["ham", "spam"], "spam"
    )
    assert figures["accuracy"] == 0.75 and figures["precision"] == 1.0
    assert figures["recall"] == pytest.approx(2 / 3) and figures["f1"] == pytest.approx(0.8)
    assert figures["auc"] == 1.0 and matrix.tolist() == [[1, 0], [1, 2]]
    # four bins with one row each: |1-.9|, |1-.8|, |0-.6|, |1-.7| (of the answer given)
    assert figures["calibration_error"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4, abs=1e-6)


def test_figures_of_texts() -> None:
    same = quality.generation(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert same["bleu"] == pytest.approx(100) and same["chrf"] == pytest.approx(100)
    assert same["wer"] == 0
    assert quality.generation(["a b c d"], ["a b x d"])["wer"] == 0.25


def test_scores_become_probabilities_once() -> None:
    sums = quality.probabilities(np.array([[0.25, 0.75]], np.float32))
    assert sums.tolist() == [[0.25, 0.75]]
    logits = quality.probabilities(np.array([[0.0, np.log(3)]], np.float32))
    assert logits[0] == pytest.approx([0.25, 0.75])
