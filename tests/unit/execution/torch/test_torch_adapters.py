"""LoRA adapters: what they compute, side by side in one batch, and what is refused."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llmos.lib.errors import FailedPrecondition, ResourceExhausted
from llmos.servers.execution.engine.base import Generation
from llmos.servers.execution.engine.torch import adapters, load
from llmos.servers.execution.engine.torch.engine import TorchEngine

PROMPT = [3 + i * 11 % 400 for i in range(70)]
PLACES = {"self_attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
RANK, ALPHA = 4, 6


def write(folder: Path, model: Any, seed: int, places: str = "q k v o gate up down") -> Any:
    """Save a random adapter as PEFT does; return a copy of `model` with it merged."""
    noise = torch.Generator().manual_seed(seed)
    merged = copy.deepcopy(model)
    tensors: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(merged.model.layers):
        for part, names in PLACES.items():
            for name in set(names) & set(places.split()):
                weight = getattr(getattr(layer, part), f"{name}_proj").weight
                a = torch.randn(RANK, weight.shape[1], generator=noise) * 0.1
                b = torch.randn(weight.shape[0], RANK, generator=noise) * 0.3
                weight.data += ALPHA / RANK * b @ a
                key = f"base_model.model.model.layers.{i}.{part}.{name}_proj"
                tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return merged


def files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir()}


def greedy(model: Any, count: int) -> list[int]:
    tokens = list(PROMPT)
    with torch.inference_mode():
        for _ in range(count):
            logits = model(torch.tensor([tokens])).logits[0, -1]
            logits[2] = -torch.inf
            tokens.append(int(logits.argmax()))
    return tokens[len(PROMPT) :]


async def say(engine: TorchEngine, adapter: str = "", count: int = 12) -> list[int]:
    wanted = Generation(
        tokens=PROMPT, max_tokens=count, temperature=0, adapter=adapter, logit_bias={2: -100.0}
    )
    return [token async for piece in engine.generate(wanted) for token in piece.tokens]


@contextmanager
def serving(model: Any, precision: str) -> Iterator[TorchEngine]:
    engine = load(model.spec(), precision)
    try:
        yield engine
    finally:
        engine.close()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
async def test_tokens_are_those_of_the_merged_model(
    make_tiny: type[Any], tmp_path: Path, kind: str
) -> None:
    tiny = make_tiny(tmp_path / "model", kind)
    every = write(tmp_path / "every", tiny.reference, 1)
    some = write(tmp_path / "some", tiny.reference, 2, "q v down")
    expected = {"": tiny.reference, "every@1": every, "some@1": some}
    with serving(tiny, "float32") as engine:
        await engine.adapt("every@1", files(tmp_path / "every"))
        await engine.adapt("some@1", files(tmp_path / "some"))
        names = [*expected, *reversed(expected), "every@1"]
        together = await asyncio.gather(*(say(engine, name) for name in names))
        for name, tokens in zip(names, together, strict=True):
            assert tokens == greedy(expected[name], 12), name
    assert len({tuple(tokens) for tokens in together}) == 3


async def test_int8_keeps_apart_what_runs_side_by_side(tiny: Any, tmp_path: Path) -> None:
    write(tmp_path / "one", tiny.reference, 3)
    write(tmp_path / "two", tiny.reference, 4, "k gate")
    names = ["", "one@1", "two@1"]
    with serving(tiny, "int8") as engine:
        plain = await say(engine)
        for name in names[1:]:
            await engine.adapt(name, files(tmp_path / name[:3]))
        alone = [await say(engine, name) for name in names]
        together = await asyncio.gather(*(say(engine, name) for name in names * 3))
        assert alone[0] == plain and together == alone * 3
        assert len({tuple(tokens) for tokens in alone}) == 3


async def test_int8_is_near_the_merged_model(tiny: Any, tmp_path: Path) -> None:
    merged = write(tmp_path / "one", tiny.reference, 5)
    with serving(tiny, "int8") as engine:
        await engine.adapt("one@1", files(tmp_path / "one"))
        wanted = Generation(tokens=PROMPT, max_tokens=1, adapter="one@1", logprobs=5)
        [piece] = [piece async for piece in engine.generate(wanted)]
    with torch.inference_mode():
        exact = merged(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
        plain = tiny.reference(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    top = piece.logprobs[0].top
    rounding = max(abs(value - float(exact[token])) for token, value in top)
    assert rounding < max(abs(float(plain[token] - exact[token])) for token, _ in top) / 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "IA3"}, "not that of a LoRA"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 0}, "no rank"),
    ],
)
async def test_what_is_no_plain_lora_is_refused(
    tiny: Any, tiny_engine: TorchEngine, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    write(tmp_path / "a", tiny.reference, 1, "q")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FailedPrecondition, match=says) as caught:
        await tiny_engine.adapt("a@1", files(tmp_path / "a"))
    assert caught.value.reason == "BAD_ADAPTER" and not tiny_engine.adapted("a@1")


async def test_damaged_and_foreign_files_are_refused(
    tiny_engine: TorchEngine, tmp_path: Path
) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    key = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    a, b = torch.zeros(2, 64), torch.zeros(64, 2)
    cases = {
        "another model": {key.format(0, "A"): torch.zeros(2, 65), key.format(0, "B"): b},
        "has not": {key.format(9, "A"): a, key.format(9, "B"): b},
        "do not fit": {key.format(0, "A"): a},
        "not finite": {key.format(0, "A"): a / 0, key.format(0, "B"): b},
        "no LoRA of a linear layer": {"base_model.model.lm_head.lora_A.weight": a},
    }
    for says, tensors in cases.items():
        folder = tmp_path / says.replace(" ", "-")
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(FailedPrecondition, match=says):
            await tiny_engine.adapt("x@1", files(folder))
    (folder / "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(FailedPrecondition, match="damaged"):
        await tiny_engine.adapt("x@1", files(folder))
    with pytest.raises(FailedPrecondition, match="PEFT"):
        await tiny_engine.adapt("x@1", {})


async def test_room_for_adapters_is_bounded(
    tiny: Any, tiny_engine: TorchEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        write(tmp_path / f"a{i}", tiny.reference, i, "q")
    monkeypatch.setattr(adapters, "ROOM", 13_000)  # two of them
    for i in range(3):
        await tiny_engine.adapt(f"a{i}@1", files(tmp_path / f"a{i}"))
    assert [tiny_engine.adapted(f"a{i}@1") for i in range(3)] == [False, True, True]
    monkeypatch.setattr(adapters, "ROOM", 100)
    with pytest.raises(ResourceExhausted):
        await tiny_engine.adapt("a0@1", files(tmp_path / "a0"))
