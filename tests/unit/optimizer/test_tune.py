"""Fine-tuning (all weights, LoRA) and distilling small real models; killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text import tiny_bert
from train_world import LINE, Killed, TrainWorld, same, sentences

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.optimizer.train import loop, pretrained

TEXTS = {"text": sentences(80)}
LABELLED = {"text": [f"{w} ship" for w in ("good", "bad") * 20], "label": ["yes", "no"] * 20}


@pytest.fixture(autouse=True)
def report_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_REPORT_S", 0.0)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model that was trained a little."""
    spec = pb.Train(
        name="m",
        data=pb.TrainingData(dataset="d", tokens=16, vocabulary=300),
        decoder=pb.Transformer(layers=3, width=32, heads=2),
        training=pb.Training(learning_rate=0.01, batch=8, steps=20),
    )
    world = TrainWorld(tmp_path_factory.mktemp("decoder"), "train", spec, TEXTS)
    world.train()
    return world.work / "result" / "train"


def twice(folder: Path, kind: str, spec: Any, table: dict[str, Any], source: Path) -> TrainWorld:
    """Train unbroken, and killed and resumed: the files must be the same."""
    label = "label" if "label" in table else ""
    whole = TrainWorld(folder / "whole", kind, spec, table, source=source, label_column=label)
    whole.train()
    broken = TrainWorld(folder / "broken", kind, spec, table, source=source, label_column=label)
    with pytest.raises(Killed):
        broken.train(6)
    broken.train()
    for result in (whole.work / "result").iterdir():
        for file in result.glob("*.safetensors"):
            step = result.name
            assert same(whole.weights(step, file.name), broken.weights(step, file.name))
    return whole


def training(**settings: Any) -> pb.Training:
    return pb.Training(**{"batch": 8, "steps": 10, "checkpoint_steps": 4, **settings})


def test_all_weights_of_a_language_model(tmp_path: Path, decoder: Path) -> None:
    spec = pb.FineTune(
        model="source",
        data=pb.TrainingData(dataset="d", tokens=16),
        training=training(learning_rate=0.002),
    )
    world = twice(tmp_path, "fine_tune", spec, {"text": sentences(80, seed=5)}, decoder)
    assert world.told[-1].loss < world.told[0].loss
    assert not same(world.weights("fine-tune"), pretrained_weights(decoder))
    assert (world.work / "result" / "fine-tune" / "tokenizer.json").exists()


def pretrained_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def test_lora_of_a_language_model_is_an_adapter_and_a_merged_model(
    tmp_path: Path, decoder: Path
) -> None:
    spec = pb.FineTune(
        model="source",
        data=pb.TrainingData(dataset="d", tokens=16),
        lora=pb.Lora(rank=4, targets=["q_proj", "v_proj"], dropout=0.1, merge=True),
        training=training(learning_rate=0.01),
    )
    world = twice(tmp_path, "fine_tune", spec, {"text": sentences(80, seed=5)}, decoder)
    adapter = world.weights("lora", "adapter_model.safetensors")
    assert len(adapter) == 3 * 2 * 2 and all("_proj.lora_" in name for name in adapter)
    config = json.loads((world.work / "result" / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (4, ["q_proj", "v_proj"])
    before, merged = pretrained_weights(decoder), world.weights("lora-merge")
    assert before.keys() == merged.keys()
    name = "model.layers.1.self_attn.q_proj"
    begin = f"base_model.model.{name}"
    added = adapter[f"{begin}.lora_B.weight"] @ adapter[f"{begin}.lora_A.weight"] * (16 / 4)
    assert torch.allclose(merged[f"{name}.weight"], before[f"{name}.weight"] + added, atol=1e-6)
    assert torch.equal(merged["model.norm.weight"], before["model.norm.weight"])


@pytest.mark.parametrize("lora", [False, True])
def test_an_encoder_learns_to_classify(tmp_path: Path, lora: bool) -> None:
    source = tiny_bert(tmp_path / "bert")
    spec = pb.FineTune(
        model="source",
        data=pb.TrainingData(dataset="d", tokens=16),
        lora=pb.Lora() if lora else None,
        training=training(learning_rate=0.01, steps=25),
    )
    world = twice(tmp_path, "fine_tune", spec, LABELLED, source)
    assert world.told[-1].loss < 0.2
    if not lora:
        model = pretrained.load(world.work / "result" / "fine-tune", ["no", "yes"])
        assert model.config.id2label == {0: "no", 1: "yes"}


def test_a_network_of_numbers(tmp_path: Path) -> None:
    first = pb.Train(
        name="m",
        data=pb.TrainingData(dataset="d", target="y"),
        linear=pb.Linear(),
        training=pb.Training(method=pb.METHOD_SGD, learning_rate=0.05, epochs=20),
    )
    made = TrainWorld(tmp_path / "first", "train", first, LINE)
    begin = made.train()
    spec = pb.FineTune(
        model="source",
        data=pb.TrainingData(dataset="d", target="y"),
        training=pb.Training(
            method=pb.METHOD_SGD, learning_rate=0.05, steps=30, checkpoint_steps=4
        ),
    )
    world = twice(tmp_path, "fine_tune", spec, LINE, made.work / "result" / "train")
    assert world.told[-1].loss < begin.loss


def test_distil_to_fewer_layers(tmp_path: Path, decoder: Path) -> None:
    spec = pb.Distil(
        teacher="source",
        layers=2,
        data=pb.TrainingData(dataset="d", tokens=16),
        hidden_weight=0.1,
        training=training(learning_rate=0.005, steps=20),
    )
    world = twice(tmp_path, "distil", spec, TEXTS, decoder)
    assert world.told[-1].loss < world.told[0].loss
    folder = world.work / "result" / "distil"
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 2
    assert (
        pretrained.load(folder, []).num_parameters()
        < 0.9 * pretrained.load(decoder, []).num_parameters()
    )


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (pb.FineTune(lora=pb.Lora(targets=["nothing"])), "lora.targets has 'nothing'"),
        (pb.Distil(layers=9), "distil.layers is 9; the teacher has 3 layers"),
    ],
)
def test_bad_specs(tmp_path: Path, decoder: Path, spec: Any, says: str) -> None:
    spec.data.CopyFrom(pb.TrainingData(dataset="d", tokens=16))
    kind = "distil" if isinstance(spec, pb.Distil) else "fine_tune"
    with pytest.raises(InvalidArgument) as caught:
        TrainWorld(tmp_path, kind, spec, TEXTS, source=decoder).train()
    assert caught.value.reason == "BAD_SPEC" and says in caught.value.message
