"""Training from scratch: the seed article's line, each network, resuming, what stops it early."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from train_world import LINE, Killed, TrainWorld, same, sentences

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.lib.errors import Aborted, InvalidArgument
from llmos.servers.optimizer.job.context import Stopped
from llmos.servers.optimizer.train import loop
from llmos.servers.optimizer.train.plan import Plan


@pytest.fixture(autouse=True)
def report_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_REPORT_S", 0.0)


def blobs(rows: int = 60) -> dict[str, Any]:
    random = np.random.default_rng(0)
    kind = random.integers(0, 3, rows)
    centre = np.array([[0, 0], [4, 0], [0, 4]])[kind] + random.normal(0, 0.5, (rows, 2))
    return {"a": centre[:, 0], "b": centre[:, 1], "kind": np.array(["x", "y", "z"])[kind]}


def images(rows: int = 48) -> dict[str, Any]:
    """Return 8x8 pictures whose bright half is the class."""
    random = np.random.default_rng(0)
    label = random.integers(0, 2, rows)
    pixels = random.integers(0, 60, (rows, 8, 8)).astype(np.uint8)
    for row, side in enumerate(label):
        pixels[row, :, 4 * side : 4 * side + 4] += 150
    flat = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 64)
    field = pa.field("image", flat.type, metadata={"shape": "8,8"})
    return {"batch": pa.table([flat, pa.array(label)], pa.schema([field, ("label", pa.int64())]))}


def linear(**training: Any) -> pb.Train:
    settings = {"method": pb.METHOD_SGD, "learning_rate": 0.05, "epochs": 300, **training}
    return pb.Train(
        name="line",
        data=pb.TrainingData(dataset="line", target="y"),
        linear=pb.Linear(),
        training=pb.Training(**settings),
    )


def test_the_line_of_the_first_article(tmp_path: Path) -> None:
    world = TrainWorld(tmp_path, "train", linear(epochs=700), LINE)
    outcome = world.train()
    assert outcome.loss < 1e-6 and outcome.steps == 700
    weights = world.weights("train")
    assert weights["1.weight"].item() == pytest.approx(2, abs=1e-3)
    assert weights["1.bias"].item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("method", [pb.METHOD_SGD, pb.METHOD_ADAM, pb.METHOD_ADAMW])
def test_killed_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, method: pb.Method.ValueType
) -> None:
    spec = pb.Train(
        name="m",
        data=pb.TrainingData(dataset="d", target="kind"),
        mlp=pb.Mlp(hidden=[16, 8], dropout=0.2),
        training=pb.Training(
            method=method,
            momentum=0.9 if method == pb.METHOD_SGD else 0,
            learning_rate=0.01,
            schedule=pb.SCHEDULE_COSINE,
            warmup=0.1,
            max_gradient_norm=1,
            l1=1e-4,
            l2=1e-3,
            batch=16,
            accumulate=2,
            steps=24,
            checkpoint_steps=5,
            seed=3,
        ),
    )
    whole = TrainWorld(tmp_path / "whole", "train", spec, blobs(), blobs(30))
    outcome = whole.train()
    broken = TrainWorld(tmp_path / "broken", "train", spec, blobs(), blobs(30))
    for kill_at in (3, 7, 18):  # before the first checkpoint, and between others
        with pytest.raises(Killed):
            broken.train(kill_at)
    again = broken.train()
    assert same(whole.weights("train"), broken.weights("train"))
    assert (outcome.loss, outcome.validation_loss) == (again.loss, again.validation_loss)
    assert repr(broken.train()) == repr(again)  # not done again; it has a NaN


def test_a_training_that_is_asked_to_stop_keeps_its_last_step(tmp_path: Path) -> None:
    world = TrainWorld(tmp_path, "train", linear(epochs=50), LINE)
    world.shop.prepare(world.splits)
    world.stop.set()
    with pytest.raises(Stopped):
        world.train()
    world.stop.clear()
    with pytest.raises(Killed):
        world.train(20)
    whole = TrainWorld(tmp_path / "whole", "train", linear(epochs=50), LINE)
    whole.train()
    world.train()
    assert same(whole.weights("train"), world.weights("train"))


def test_it_says_at_which_step_it_diverges(tmp_path: Path) -> None:
    with pytest.raises(Aborted) as caught:
        TrainWorld(tmp_path, "train", linear(learning_rate=0.2), LINE).train()
    assert caught.value.reason == "DIVERGED"
    assert "at step " in caught.value.message and "learning_rate" in caught.value.message
    with pytest.raises(Aborted, match=r"The loss is (inf|nan) at step"):
        TrainWorld(tmp_path / "2", "train", linear(learning_rate=1e20), LINE).train()


def test_logistic_regression(tmp_path: Path) -> None:
    spec = pb.Train(
        name="m",
        data=pb.TrainingData(dataset="d", target="kind"),
        logistic=pb.Logistic(),
        training=pb.Training(learning_rate=0.1, epochs=40, precision=pb.PRECISION_BFLOAT16),
    )
    world = TrainWorld(tmp_path, "train", spec, blobs(), blobs(40))
    assert world.train().validation_loss < 0.3


def test_early_stopping_takes_the_best_weights(tmp_path: Path) -> None:
    table, other = blobs(40), blobs(40)
    other["kind"] = np.roll(other["kind"], 7)  # what is learned is worth nothing there
    spec = pb.Train(
        name="m",
        data=pb.TrainingData(dataset="d", target="kind"),
        mlp=pb.Mlp(),
        training=pb.Training(learning_rate=0.05, epochs=50, patience=2),
    )
    world = TrainWorld(tmp_path, "train", spec, table, other)
    outcome = world.train()
    assert outcome.steps < 100
    losses = [t.validation_loss for t in world.told if not math.isnan(t.validation_loss)]
    assert losses[-1] > min(losses)


def test_images(tmp_path: Path) -> None:
    spec = pb.Train(
        name="m",
        data=pb.TrainingData(dataset="d", target="label", features=["image"]),
        cnn=pb.Cnn(channels=[4, 8], hidden=16),
        training=pb.Training(learning_rate=0.01, epochs=8),
    )
    world = TrainWorld(tmp_path, "train", spec, {"x": [1]})
    import pyarrow.parquet as pq

    pq.write_table(images()["batch"], world.splits.train)
    assert world.train().loss < 0.3
    assert world.shop.prepare(world.splits).about.shape == [8, 8]


TEXTS = {"text": sentences(60), "label": ["one", "two"] * 30, "answer": sentences(60, seed=1)}
SMALL = pb.Transformer(layers=1, width=32, heads=2)


@pytest.mark.parametrize("network", ["encoder", "decoder", "encoder_decoder"])
def test_transformers(tmp_path: Path, network: str) -> None:
    spec = pb.Train(
        name="m",
        data=pb.TrainingData(
            dataset="d",
            target={"encoder": "label", "encoder_decoder": "answer"}.get(network, ""),
            tokens=32,
            vocabulary=300,
        ),
        training=pb.Training(learning_rate=0.005, batch=8, steps=12, checkpoint_steps=4),
    )
    getattr(spec, network).CopyFrom(SMALL)
    whole = TrainWorld(tmp_path / "whole", "train", spec, TEXTS)
    outcome = whole.train()
    if network != "encoder":  # its labels follow no rule
        assert outcome.loss < whole.told[0].loss
    broken = TrainWorld(tmp_path / "broken", "train", spec, TEXTS)
    with pytest.raises(Killed):
        broken.train(6)
    broken.train()
    assert same(whole.weights("train"), broken.weights("train"))
    names = {path.name for path in (whole.work / "result" / "train").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"target": "z"}, "data.target 'z' is no column; there are x, y"),
        ({"target": "y", "features": ["q"]}, "data.features has 'q'"),
        ({}, "data.target is empty"),
    ],
)
def test_bad_columns(tmp_path: Path, data: dict[str, Any], says: str) -> None:
    spec = linear()
    spec.data.CopyFrom(pb.TrainingData(dataset="line", **data))
    with pytest.raises(InvalidArgument, match="data set data@1") as caught:
        TrainWorld(tmp_path, "train", spec, LINE, text_column="").train()
    assert caught.value.reason == "BAD_SPEC" and says in caught.value.message


def test_schedules() -> None:
    training = pb.Training(learning_rate=1, warmup=0.2, steps=10, schedule=pb.SCHEDULE_LINEAR)
    plan = Plan.of(training, rows=100, rate=0.1)
    assert [round(plan.rate(i), 3) for i in (0, 1, 2, 6)] == [0.5, 1, 1, 0.5]
    plan = Plan.of(pb.Training(epochs=2, batch=30), rows=100, rate=0.1)
    assert (plan.epoch_steps, plan.steps, plan.rate(0)) == (4, 8, 0.1)


def test_every_row_is_taken_once_in_an_epoch(tmp_path: Path) -> None:
    world = TrainWorld(
        tmp_path, "train", linear(batch=2), {"x": [float(i) for i in range(7)], "y": [0.0] * 7}
    )
    examples = world.shop.prepare(world.splits)
    setup = world.shop.setup(examples)
    from llmos.servers.optimizer.train.gate import Gate
    from llmos.servers.optimizer.train.place import Place

    plan = Plan.of(world.spec.training, 7, 1)
    made = loop.Loop(
        setup.network, setup.objective, examples.train, None, plan, Place(),
        Gate(tmp_path, world.stop), tmp_path, lambda now: None,
    )  # fmt: skip
    for epoch in range(2):
        rows = [made.step_rows(epoch * plan.epoch_steps + i) for i in range(plan.epoch_steps)]
        assert sorted(np.concatenate(rows)) == list(range(7))
