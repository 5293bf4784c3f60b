"""A draft model changes the speed and never a token; its cache goes along with the other's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_cut import layer_cut
from safetensors.torch import load_file, save_file

from llmos.lib.errors import FailedPrecondition, InvalidArgument, Unavailable
from llmos.servers.execution.engine.base import Generation, ModelSpec, Piece
from llmos.servers.execution.engine.torch import check, estimate_bytes, load
from llmos.servers.execution.engine.torch.engine import TorchEngine

TEXT = "The quick brown fox jumps over the lazy dog. How many cats? "
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 0.9, "seed": 5, "top_p": 0.8, "frequency_penalty": 0.1},
    {"temperature": 0.3, "seed": 8, "repetition_penalty": 1.05, "logprobs": 1},
]


async def answer(engine: TorchEngine, request: Generation) -> tuple[list[int], Piece]:
    pieces = [piece async for piece in engine.generate(request)]
    return [t for piece in pieces for t in piece.tokens], pieces[-1]


def steps_of(engine: TorchEngine) -> float:
    """Return the steps that the large model has made."""
    model = engine._loop._model
    return model.computed / model.config.layers


@pytest.fixture(scope="module")
def small(make_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A draft model that is mostly wrong: other layers, and a shorter context."""
    made = make_tiny(
        tmp_path_factory.mktemp("small"), num_hidden_layers=1, max_position_embeddings=128
    )
    spec: ModelSpec = made.spec()
    return replace(spec, ref="small@2")


@pytest.fixture(scope="module", params=["float32", "int8"])
def drafted(tiny: Any, small: ModelSpec, request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    engine = load(tiny.spec(draft=small), request.param)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def twins(tiny: Any) -> Iterator[TorchEngine]:
    """A model that guesses for itself."""
    engine = load(tiny.spec(draft=tiny.spec()), "float32")
    yield engine
    engine.close()


@pytest.mark.parametrize("settings", SETTINGS)
async def test_guesses_of_a_draft_model_change_no_token(
    drafted: TorchEngine, settings: dict[str, Any]
) -> None:
    request = Generation(prompt=TEXT * 2, max_tokens=80, **settings)  # beyond the small context
    plain, _ = await answer(drafted, request)
    for ahead in (3, 16):
        guessed, last = await answer(drafted, replace(request, speculate=ahead))
        assert guessed == plain
        assert last.guessed_tokens > 0 and last.accepted_tokens <= last.guessed_tokens
    cut = len(plain) // 2
    resumed, _ = await answer(drafted, replace(request, speculate=4, resume=plain[:cut]))
    assert plain[:cut] + resumed == plain


@pytest.mark.parametrize("settings", SETTINGS)
async def test_a_model_that_guesses_for_itself_is_always_right(
    twins: TorchEngine, settings: dict[str, Any]
) -> None:
    request = Generation(prompt=TEXT + str(settings), max_tokens=60, **settings)
    plain, last = await answer(twins, request)
    assert last.guessed_tokens == 0
    before = steps_of(twins)
    guessed, last = await answer(twins, replace(request, speculate=5))
    assert guessed == plain
    assert last.accepted_tokens == last.guessed_tokens > 0
    if not last.finish == "stop":
        assert steps_of(twins) - before <= 2 + len(plain) / 6 + 1


async def test_many_at_once_and_shared_prefixes_change_no_token(twins: TorchEngine) -> None:
    requests = [
        Generation(prompt=TEXT * 2 + str(i % 3), max_tokens=20 + i, temperature=0.8, seed=i)
        for i in range(8)
    ]
    plain = [await answer(twins, request) for request in requests]
    many = await asyncio.gather(
        *(answer(twins, replace(r, speculate=i % 4 * 2)) for i, r in enumerate(requests))
    )
    for i, ((tokens, _), (guessed, last)) in enumerate(zip(plain, many, strict=True)):
        assert guessed == tokens
        # What others have read without a draft model is read by it before it guesses.
        assert last.accepted_tokens == last.guessed_tokens
        assert bool(last.guessed_tokens) == bool(i % 4)


async def test_a_preempted_text_gives_up_both_caches(tiny: Any) -> None:
    engine = load(tiny.spec(draft=tiny.spec(), context_length=128), "float32")  # 32 blocks
    never = {0: -100.0, 1: -100.0, 2: -100.0}  # ends
    requests = [
        Generation(tokens=[*range(9 + i, 54 + i)], max_tokens=60, seed=i, logit_bias=never)
        for i in range(14)
    ]
    try:
        alone = [(await answer(engine, request))[0] for request in requests]
        running = [
            asyncio.ensure_future(answer(engine, replace(request, speculate=4)))
            for request in requests
        ]
        with engine._loop._changed:  # all are there before the first is computed
            while len(engine._loop._jobs.waiting) < len(requests):
                await asyncio.sleep(0)
        together = await asyncio.gather(*running)
        assert engine._loop._jobs.preemptions > 0, "eleven of two blocks, and each wants four"
        for tokens, (said, last) in zip(alone, together, strict=True):
            assert said == tokens and last.accepted_tokens == last.guessed_tokens > 0
    finally:
        engine.close()


async def test_a_draft_model_without_finite_numbers_is_left_out(
    tiny: Any, small: ModelSpec
) -> None:
    engine = load(tiny.spec(draft=small), "float32")
    try:
        request = Generation(prompt=TEXT, max_tokens=12, temperature=0)
        plain, _ = await answer(engine, request)
        drafter = engine._loop._drafter
        assert drafter is not None
        drafter.model._norm = torch.full((64,), torch.nan)
        guessed, last = await answer(engine, replace(request, speculate=4))
        assert guessed == plain and last.guessed_tokens == 0
        drafter.model._norm = torch.ones(3)  # of another shape: torch refuses
        guessed, _ = await answer(engine, replace(request, speculate=4))
        assert guessed == plain and engine._loop._drafter is None
        assert (await answer(engine, replace(request, speculate=4)))[0] == plain
    finally:
        engine.close()


async def test_what_is_declared_counts_where_a_request_says_nothing(
    tiny: Any, tmp_path: Path
) -> None:
    spec = tiny.spec(draft=tiny.spec())
    (tmp_path / "serving.toml").write_text("[generate]\ndraft = 'tiny@1'\nspeculate = 3\n")
    engine = load(replace(spec, files=spec.files | {"serving.toml": tmp_path / "serving.toml"}))
    try:
        _, last = await answer(engine, Generation(prompt=TEXT, max_tokens=9, seed=1))
        assert last.guessed_tokens > 0
    finally:
        engine.close()


@pytest.mark.parametrize(
    "change", ["speculate = 17", "speculate = true", "draft = 3", "drafts = 'x'"]
)
def test_wrong_declarations_are_named(tiny: Any, tmp_path: Path, change: str) -> None:
    (tmp_path / "serving.toml").write_text(f"[generate]\n{change}\n")
    spec = tiny.spec()
    with pytest.raises(Unavailable, match="generate"):
        check(replace(spec, files=spec.files | {"serving.toml": tmp_path / "serving.toml"}))
    with pytest.raises(InvalidArgument, match="generate"):
        check(replace(spec, changes={"generate.speculate": "99"}))


def test_a_draft_model_with_other_tokens_is_refused(
    tiny: Any, small: ModelSpec, smollm_spec: ModelSpec, tmp_path: Path
) -> None:
    with pytest.raises(FailedPrecondition, match=r"smollm2@1 cannot guess for tiny@1") as error:
        load(tiny.spec(draft=smollm_spec), "int8")
    assert error.value.reason == "BAD_DRAFT"
    weights = load_file(small.files["model.safetensors"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name][5] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    broken = small.files | {"model.safetensors": tmp_path / "model.safetensors"}
    with pytest.raises(Unavailable, match="small@2"):
        load(tiny.spec(draft=replace(small, files=broken)), "float32")


def test_the_grant_counts_both(tiny: Any, small: ModelSpec) -> None:
    alone, guesser = estimate_bytes(tiny.spec()), estimate_bytes(small)
    assert alone < estimate_bytes(tiny.spec(draft=small)) <= alone + 2 * guesser


async def test_the_first_layers_of_smollm2_guess_for_all(
    smollm_spec: ModelSpec, smollm_path: Path, tmp_path: Path
) -> None:
    cut = layer_cut(smollm_path, tmp_path / "cut.gguf", 20)
    draft = replace(smollm_spec, ref="cut@1", files={cut.name: cut})
    engine = load(replace(smollm_spec, draft=draft), "int8")
    try:
        for settings in ({"temperature": 0}, {"temperature": 0.5, "seed": 7, "top_p": 0.9}):
            request = Generation(prompt="Once upon a time", max_tokens=24, **settings)
            plain, _ = await answer(engine, request)
            guessed, last = await answer(engine, replace(request, speculate=4))
            assert guessed == plain
            assert 0 < last.accepted_tokens < last.guessed_tokens
    finally:
        engine.close()
