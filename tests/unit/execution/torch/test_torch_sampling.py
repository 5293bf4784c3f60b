"""Choices: their distribution, each setting, independence of neighbours; guesses; constraints."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import Generation, Piece
from llmos.servers.execution.engine.torch.engine import TorchEngine
from llmos.servers.execution.engine.torch.sampling import Row, Sampler, choose

PLAIN = Sampler(1.0, 1.0, 0, 0)
VOCAB = 3000  # more than the head in which cuts are looked for first


def logits(rows: int = 1, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def chosen(line: torch.Tensor, sampler: Sampler, count: int = 400, **row: Any) -> list[int]:
    """Choose once for each of `count` seeds."""
    rows = [Row(replace(sampler, seed=i), row.get("tokens", [1]), 1) for i in range(count)]
    choices = choose(line.repeat(count, 1), rows)
    return [choice.token for choice in choices if choice is not None]


@pytest.mark.parametrize(
    "sampler", [PLAIN, replace(PLAIN, top_k=VOCAB), replace(PLAIN, min_p=1e-9)]
)
def test_frequencies_are_the_softmax(sampler: Sampler) -> None:
    line = torch.full((1, VOCAB), -20.0)
    line[0, [5, 700, 2999]] = torch.tensor([0.5, 0.2, 0.3]).log()
    counts = Counter(chosen(line, sampler, 2000))
    for token, share in ((5, 0.5), (700, 0.2), (2999, 0.3)):
        assert abs(counts[token] / 2000 - share) < 0.05


def allowed(line: torch.Tensor, sampler: Sampler) -> set[int]:
    """Say by definition which tokens are left, one after another (top_k, top_p, min_p)."""
    likely = torch.softmax(line[0].double() / sampler.temperature, -1)
    order = likely.argsort(descending=True).tolist()[: sampler.top_k or VOCAB]
    total = sum(float(likely[i]) for i in order)
    left, before = set(), 0.0
    for i in order:
        if before >= sampler.top_p * total or likely[i] < sampler.min_p * likely[order[0]]:
            break
        left.add(i)
        before += float(likely[i])
    return left


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(0.7, 1.0, 3, 0),
        Sampler(1.3, 0.6, 0, 0),
        Sampler(2.0, 0.999, 0, 0, min_p=0.0),  # more than the head
        Sampler(1.0, 0.9, 2000, 0),
        Sampler(1.0, 1.0, 0, 0, min_p=0.2),
        Sampler(2.0, 1.0, 0, 0, min_p=1e-7),
        Sampler(0.5, 0.9, 50, 0, min_p=0.05),
    ],
)
def test_cuts_leave_what_they_should(sampler: Sampler) -> None:
    line = logits(spread=2.0)
    left = allowed(line, sampler)
    seen = set(chosen(line, sampler, 600))
    assert seen <= left and len(seen) >= min(len(left), 3)


def test_neighbours_have_no_influence() -> None:
    lines = logits(12, 4)
    samplers = [
        Sampler(0.0, 1.0, 0, 1),
        Sampler(1.0, 1.0, 0, 2),
        Sampler(0.8, 0.9, 40, 3, logprobs=2),
        Sampler(1.9, 0.99999, 0, 4),
        Sampler(0.9, 1.0, 0, 5, min_p=0.1, repetition=1.3, presence=0.4, bias={7: 3.0}),
        Sampler(1.1, 0.5, 0, 6, frequency=0.2),
    ] * 2
    rows = [Row(s, [1, 2, 3, i], 2) for i, s in enumerate(samplers)]
    together = choose(lines.clone(), rows)
    alone = [choose(lines[i : i + 1].clone(), [row])[0] for i, row in enumerate(rows)]
    assert together == alone


def test_penalties_and_bias_do_what_they_say() -> None:
    line = torch.zeros(1, VOCAB)
    line[0, :4] = torch.tensor([4.0, 3.9, 3.0, -1.0])

    def greedy(**settings: Any) -> int:
        tokens = settings.pop("tokens", [0, 0, 0, 1])
        row = Row(Sampler(0.0, 1.0, 0, 0, **settings), tokens, 1)
        choice = choose(line.clone(), [row])[0]
        assert choice is not None
        return choice.token

    assert greedy() == 0
    assert greedy(repetition=1.1) == 0, "both came before"
    assert greedy(repetition=1.1, tokens=[0]) == 1
    assert greedy(frequency=0.3) == 1  # 4.0 - 0.6 against 3.9 - 0.3
    assert greedy(presence=0.5, tokens=[9, 0]) == 1
    assert greedy(presence=2.0, tokens=[0, 9]) == 0, "the prompt does not count"
    assert greedy(bias={2: 5.0, 0: -100.0}) == 2


def test_reports_are_of_the_model_itself() -> None:
    line = logits()
    expected = torch.log_softmax(line[0], -1)
    sampler = Sampler(0.3, 1.0, 0, 7, bias={11: 100.0}, logprobs=3)
    choice = choose(line.clone(), [Row(sampler, [1], 1)])[0]
    assert choice is not None and choice.token == 11 and choice.logprob is not None
    assert math.isclose(choice.logprob.logprob, float(expected[11]), rel_tol=1e-5)
    assert [token for token, _ in choice.logprob.top] == expected.topk(3).indices.tolist()


def test_a_row_without_numbers_is_told_apart() -> None:
    lines = logits(3)
    lines[1, 5] = math.nan
    rows = [Row(replace(PLAIN, temperature=t), [1], 1) for t in (0.0, 1.0, 1.0)]
    assert [choice is None for choice in choose(lines, rows)] == [False, True, False]


async def answer(engine: TorchEngine, request: Generation) -> tuple[str, list[int], Piece]:
    pieces = [piece async for piece in engine.generate(request)]
    tokens = [t for piece in pieces for t in piece.tokens]
    return "".join(piece.text for piece in pieces), tokens, pieces[-1]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 0.7, "seed": 3},
        {"temperature": 0.9, "seed": 5, "top_p": 0.8, "frequency_penalty": 0.1},
        {"temperature": 0.3, "seed": 8, "repetition_penalty": 1.05, "logprobs": 1},
    ],
)
async def test_guesses_change_no_token(tiny_engine: TorchEngine, settings: dict[str, Any]) -> None:
    assert tiny_engine._loop._model.exact
    text = "The quick brown fox jumps over the lazy dog. "
    request = Generation(prompt=text * 2, max_tokens=60, **settings)
    steps = tiny_engine.work()
    plain = await answer(tiny_engine, request)
    plainly = tiny_engine.work() - steps
    for ahead in (1, 5, 16):
        steps = tiny_engine.work()
        guessed = await answer(tiny_engine, replace(request, speculate=ahead))
        assert guessed[:2] == plain[:2] and guessed[2].finish == plain[2].finish
        assert tiny_engine.work() - steps <= plainly
    cut = len(plain[1]) // 2
    resumed = await answer(tiny_engine, replace(request, speculate=5, resume=plain[1][:cut]))
    assert plain[1][:cut] + resumed[1] == plain[1]


async def test_guesses_save_steps_where_a_text_repeats(smollm: TorchEngine) -> None:
    request = Generation(prompt="1 2 3 4 5 1 2 3 4 5 1 2 3 4 5 1 2", temperature=0, max_tokens=20)
    plain = await answer(smollm, request)
    steps = smollm.work()
    guessed = await answer(smollm, replace(request, speculate=8))
    assert guessed[:2] == plain[:2]
    assert (smollm.work() - steps) / smollm._loop._model.config.layers < 12


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


async def test_json_by_schema_from_a_model_that_talks_nonsense(tiny_engine: TorchEngine) -> None:
    pytest.importorskip("llguidance")
    requests = [
        Generation(
            prompt="cats", json_schema=json.dumps(SCHEMA), temperature=1.0, seed=i, max_tokens=200
        )
        for i in range(4)
    ]
    free = Generation(prompt="cats", temperature=1.0, seed=9, max_tokens=30)
    alone = await answer(tiny_engine, free)
    *made, beside = await asyncio.gather(
        *(answer(tiny_engine, request) for request in [*requests, free])
    )
    assert beside[:2] == alone[:2]
    ended = [text for text, _, last in made if last.finish == "stop"]
    assert ended, "choose other seeds: all texts were cut off"
    for text in ended:
        value = json.loads(text)
        assert set(value) == set(SCHEMA["properties"]) and 0 <= value["age"] <= 150  # type: ignore[call-overload]
    text, tokens, _ = made[0]
    for cut in (1, len(tokens) // 2, len(tokens) - 1):
        rest = await answer(tiny_engine, replace(requests[0], resume=tokens[:cut]))
        assert tokens[:cut] + rest[1] == tokens and text.endswith(rest[0])


async def test_regular_expressions_and_grammars(smollm: TorchEngine) -> None:
    pytest.importorskip("llguidance")
    text, _, last = await answer(
        smollm, Generation(prompt="Call me: ", regex=r"\+\d{2} \d{3}-\d{4}", temperature=0)
    )
    assert re.fullmatch(r"\+\d{2} \d{3}-\d{4}", text) and last.finish == "stop"
    grammar = 'start: ("yes" | "no") "!"'
    text, _, _ = await answer(smollm, Generation(prompt="Well? ", grammar=grammar, temperature=0))
    assert text in ("yes!", "no!")


@pytest.mark.parametrize(
    "constraint",
    [
        {"json_schema": "{"},
        {"json_schema": '{"type": "object", "required": ["a"], "properties": {"a": false}}'},
        {"json_schema": '{"type": "nonsense"}'},
        {"regex": "(a"},
        {"regex": "a(?=b)"},
        {"grammar": "start: missing"},
        {"regex": "a", "grammar": 'start: "a"'},
    ],
)
async def test_constraints_that_cannot_be_met(
    tiny_engine: TorchEngine, constraint: dict[str, str]
) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(InvalidArgument) as caught:
        await answer(tiny_engine, Generation(prompt="a", **constraint))  # type: ignore[arg-type]
    assert caught.value.reason == "BAD_CONSTRAINT" and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "setting",
    [
        {"min_p": 1.1},
        {"min_p": math.nan},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"logit_bias": {416: 1.0}},
        {"logit_bias": {3: 101.0}},
        {"logit_bias": {3: math.nan}},
        {"logprobs": 21},
        {"speculate": 17},
    ],
)
async def test_settings_out_of_range_are_named(
    tiny_engine: TorchEngine, setting: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(setting))) as caught:
        await answer(tiny_engine, Generation(prompt="a", **setting))
    assert caught.value.reason == "BAD_SAMPLING"
