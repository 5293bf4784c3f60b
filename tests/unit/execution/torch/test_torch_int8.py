"""The compiled kernels: their numbers, their independence of neighbours, what few bits cost."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.lib.errors import FailedPrecondition
from llmos.servers.execution.engine.base import Generation, ModelSpec
from llmos.servers.execution.engine.torch import build, check, estimate_bytes, load
from llmos.servers.execution.engine.torch.engine import TorchEngine
from llmos.servers.execution.engine.torch.kv import KVCache, Span
from llmos.servers.execution.engine.torch.model import Between
from llmos.servers.execution.engine.torch.native import layout
from llmos.servers.execution.engine.torch.native.build import library
from llmos.servers.execution.engine.torch.native.selftest import product, works
from llmos.servers.execution.engine.torch.pages import BLOCK
from llmos.servers.execution.engine.torch.schedule import Chunk

PRECISIONS = ("fp32", "bf16", "int8", "int4")
# Random weights forgive little: int8 at every position, int4 in the mean.
NEARNESS = [("int8", 0.97), ("int4", 0.75)]
POSITIONS = int(os.environ.get("LLMOS_TEST_POSITIONS", "256"))  # a full run: 1024


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    found = library()
    if found is None:
        pytest.skip("no compiled kernels: they need AVX2 and a C++ compiler")
    layout.declare(found)
    return found


@pytest.fixture(scope="module")
def int8(smollm_spec: ModelSpec) -> Iterator[TorchEngine]:
    engine = load(smollm_spec, "int8")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def int4(smollm_spec: ModelSpec) -> Iterator[TorchEngine]:
    engine = load(smollm_spec, "int4")
    yield engine
    engine.close()


def logits_of(engine: TorchEngine, ids: list[int], cuts: list[int] | None = None) -> Tensor:
    model = engine._loop._model
    cache = KVCache(model.geometry, len(ids) + BLOCK)
    table = list(range(-(-len(ids) // BLOCK)))[::-1]
    rows = []
    cuts = cuts or []
    with torch.inference_mode():
        for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            span = Span(table, start, end - start)
            rows.append(model.forward(cache, ids[start:end], [span], range(end - start)))
    return torch.cat(rows)


def text_ids(engine: TorchEngine, count: int) -> list[int]:
    source = Path(__file__).parents[4] / "docs" / "architecture.md"
    return engine.tokenizer.encode(source.read_text("utf-8"))[:count]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 64), (50, 72), (7, 200)])
def test_a_product_is_the_rounded_matrix_in_any_company(
    kernels: ctypes.CDLL, outputs: int, inputs: int, bits: int
) -> None:
    noise = torch.Generator().manual_seed(1)
    weight = torch.randn(outputs, inputs, generator=noise)
    bias = torch.randn(outputs, generator=noise)
    packed = layout.PackedLinear(weight, bias, kernels, 2, bits)
    plain = layout.PackedLinear(weight, bias, bits=bits)
    exact, other = (p.dequantised()[:outputs, :inputs] for p in (packed, plain))
    if bits == 8:
        assert torch.equal(exact, other)
        assert float((exact - weight).abs().max()) <= float(weight.abs().max()) / 127 / 2 * 1.01
    else:  # which of two tries is better may hang on a last bit
        error, others = (float((part - weight).square().mean().sqrt()) for part in (exact, other))
        assert 0.05 < error < 0.085 and abs(error - others) < 0.003
    x = torch.randn(103, inputs, generator=noise)
    whole = product(kernels, packed, x)
    assert float((whole - (x @ exact.T + bias)).abs().max()) < 2e-3
    for start, count in ((0, 1), (5, 2), (40, 7), (96, 5), (3, 100)):
        part = product(kernels, packed, x[start : start + count].contiguous())
        assert torch.equal(part, whole[start : start + count])
    assert torch.equal(product(kernels, packed, x, threads=3), whole)


@pytest.mark.parametrize("compiled", [True, False])
def test_weights_that_had_four_bits_stay_what_they_are(
    kernels: ctypes.CDLL, compiled: bool
) -> None:
    """As in GGUF's Q4_1: a half times a code, and a half, for 32 inputs."""
    noise = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 16, (20, 6, 32), generator=noise)
    codes[..., 0], codes[..., 1] = 0, 15  # its quantiser goes from end to end
    scale = torch.rand(20, 6, 1, generator=noise).half().float() * 0.1 + 0.01
    least = -torch.rand(20, 6, 1, generator=noise).half().float()
    weight = (codes * scale.half().float() + least).reshape(20, 192)
    packed = layout.PackedLinear(weight, None, kernels if compiled else None, bits=4)
    assert float((packed.dequantised()[:20, :192] - weight).abs().max()) < 1e-6


def test_kernels_that_compute_wrongly_are_not_used(
    tiny: Any, kernels: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert works(kernels)
    monkeypatch.setattr(build, "works", lambda _: False)
    engine = load(tiny.spec(), "int8")
    try:
        assert type(engine._loop._model).__name__ == "Llama"
    finally:
        engine.close()


def test_numbers_that_are_not_finite_do_not_vanish(kernels: ctypes.CDLL) -> None:
    packed = layout.PackedLinear(torch.ones(16, 64), None, kernels)
    for bad in (math.nan, math.inf):
        x = torch.zeros(2, 64)
        x[0, 9] = bad
        y = product(kernels, packed, x)
        assert not y[0].isfinite().any() and bool((y[1] == 0).all())


def test_int8_agrees_with_fp32_and_keeps_its_perplexity(
    int8: TorchEngine, smollm: TorchEngine
) -> None:
    ids = text_ids(smollm, POSITIONS)
    exact, rounded = (logits_of(engine, ids) for engine in (smollm, int8))
    agreement = float((exact.argmax(-1) == rounded.argmax(-1)).float().mean())
    after = torch.tensor(ids[1:])
    loss, lossy = (float(F.cross_entropy(part[:-1], after)) for part in (exact, rounded))
    assert agreement >= 0.95 - 0.5 / math.sqrt(len(ids)) * (len(ids) < 1024)
    assert math.exp(lossy - loss) < 1.01, "perplexity is up by over 1 %"


def test_int4_of_a_model_of_four_bits_loses_nothing_but_in_the_output_matrix(
    int4: TorchEngine, smollm: TorchEngine
) -> None:
    """SmolLM2's file is Q4_1: int4 keeps its layers, so that it is nearer to fp32 than int8 is."""
    ids = text_ids(smollm, POSITIONS // 2)
    exact, rounded = (logits_of(engine, ids) for engine in (smollm, int4))
    agreement = float((exact.argmax(-1) == rounded.argmax(-1)).float().mean())
    after = torch.tensor(ids[1:])
    loss, lossy = (float(F.cross_entropy(part[:-1], after)) for part in (exact, rounded))
    assert agreement >= 0.95 and math.exp(lossy - loss) < 1.01


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_cuts_and_neighbours_change_no_bit(
    precision: str, request: pytest.FixtureRequest, kernels: ctypes.CDLL
) -> None:
    engine: TorchEngine = request.getfixturevalue(precision)
    model = engine._loop._model
    assert model.exact
    ids = text_ids(engine, 150)
    whole = logits_of(engine, ids)
    assert torch.equal(logits_of(engine, ids, [1, 2, 33, 34, 64, 97]), whole)
    cache = KVCache(model.geometry, 4096)
    tables = [[5 * i + j for j in range(5)] for i in range(9)]
    with torch.inference_mode():
        for start, end in ((0, 120), (120, 121), (121, 150)):
            spans = [Span(table, start, end - start) for table in tables]
            wanted = [(end - start) * (i + 1) - 1 for i in range(9)]
            together = model.forward(cache, ids[start:end] * 9, spans, wanted)
            assert torch.equal(together, whole[end - 1].expand(9, -1))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"head_dim": 40, "num_attention_heads": 8, "num_key_value_heads": 2}),
        ("mistral", {}),
        ("qwen2", {"hidden_size": 72, "head_dim": 24}),
        ("qwen3", {"head_dim": 32}),
    ],
)
@pytest.mark.parametrize(("precision", "nearness"), NEARNESS)
def test_tiny_models_stay_near_their_float32_selves(
    tmp_path: Path,
    make_tiny: Any,
    kernels: ctypes.CDLL,
    kind: str,
    changes: dict[str, Any],
    precision: str,
    nearness: float,
) -> None:
    tiny = make_tiny(tmp_path, kind, **changes)
    ids = torch.randint(3, 400, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        theirs = tiny.reference(torch.tensor([ids])).logits[0]
    engine = load(tiny.spec(), precision)
    try:
        assert engine.info.dtype == precision
        ours = logits_of(engine, ids, [1, 40])
        assert torch.equal(ours, logits_of(engine, ids))
        near = F.cosine_similarity(ours, theirs, dim=-1)
        assert float(near.min() if precision == "int8" else near.mean()) > nearness
    finally:
        engine.close()


async def test_a_prompt_read_between_two_layers_changes_no_token(
    int8: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = [Generation(prompt=f"Once upon {n} times", temperature=0, max_tokens=24) for n in "abc"]
    asks = [Generation(prompt=f"{n} plus {n} is", temperature=0, max_tokens=2) for n in range(4)]

    async def answer(request: Generation) -> list[int]:
        return [t async for piece in int8.generate(request) for t in piece.tokens]

    alone = [await answer(request) for request in (*talk, *asks)]
    loop, asking = int8._loop, threading.Event()
    step, before = loop._step, loop._interruptions

    def held(chunks: list[Chunk], between: Between | None) -> None:
        """Begin a step of those who talk when the newcomer waits."""
        while between is not None and asking.is_set() and len(chunks) == len(talk):
            with loop._changed:
                if loop._jobs.waiting:
                    asking.clear()
            time.sleep(0.001)  # lets it come
        step(chunks, between)

    monkeypatch.setattr(loop, "_step", held)
    talking = [asyncio.create_task(answer(request)) for request in talk]
    asked = []
    for request in asks:
        asking.set()
        asked.append(await answer(request))
        asking.clear()  # it may have come between two steps
    assert [*await asyncio.gather(*talking), *asked] == alone
    assert loop._interruptions > before


async def test_a_stream_resumes_token_for_token(int8: TorchEngine) -> None:
    request = Generation(prompt="The sea is", temperature=0.9, seed=3, max_tokens=12)
    whole = [t async for piece in int8.generate(request) for t in piece.tokens]
    for cut in (1, 6, 11):
        again = Generation(
            prompt="The sea is", temperature=0.9, seed=3, max_tokens=12, resume=whole[:cut]
        )
        rest = [t async for piece in int8.generate(again) for t in piece.tokens]
        assert whole[:cut] + rest == whole


@pytest.mark.parametrize(("precision", "nearness"), NEARNESS)
def test_without_a_compiler_few_bits_are_slower_and_as_good(
    tiny: Any,
    tiny_engine: TorchEngine,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    nearness: float,
) -> None:
    monkeypatch.setattr(build, "library", lambda: None)
    ids = random.Random(5).choices(range(3, 400), k=70)
    slow, plain = load(tiny.spec(), precision), load(tiny.spec(), "fp32")
    try:
        near = F.cosine_similarity(logits_of(slow, ids), logits_of(tiny_engine, ids), dim=-1)
        assert float(near.min() if precision == "int8" else near.mean()) > nearness
        exact = logits_of(tiny_engine, ids)
        difference = (logits_of(plain, ids) - exact).abs().max() / exact.abs().max()
        assert float(difference) < 2e-5  # attention of torch instead of the kernel's
    finally:
        slow.close()
        plain.close()


def test_precisions_are_named_and_sized(smollm_spec: ModelSpec) -> None:
    from dataclasses import replace

    sizes = [estimate_bytes(replace(smollm_spec, precision=p)) for p in PRECISIONS]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < 800 << 20
    with pytest.raises(FailedPrecondition, match="int3") as caught:
        check(replace(smollm_spec, precision="int3"))
    assert caught.value.reason == "NO_ENGINE"
