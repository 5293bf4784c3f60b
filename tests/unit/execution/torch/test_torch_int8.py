"""The compiled kernels: their numbers, their independence of neighbours, what int8 costs."""

from __future__ import annotations

import ctypes
import math
import os
import random
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
from llmos.servers.execution.engine.torch.native import layout
from llmos.servers.execution.engine.torch.native.build import library
from llmos.servers.execution.engine.torch.native.selftest import product, works
from llmos.servers.execution.engine.torch.pages import BLOCK

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


@pytest.mark.parametrize(("outputs", "inputs"), [(48, 64), (50, 72), (7, 200)])
def test_a_product_is_the_rounded_matrix_in_any_company(
    kernels: ctypes.CDLL, outputs: int, inputs: int
) -> None:
    noise = torch.Generator().manual_seed(1)
    weight = torch.randn(outputs, inputs, generator=noise)
    bias = torch.randn(outputs, generator=noise)
    packed = layout.PackedLinear(weight, bias, kernels, 2)
    plain = layout.PackedLinear(weight, bias)
    assert torch.equal(packed.dequantised(), plain.dequantised())
    exact = packed.dequantised()[:outputs, :inputs]
    assert float((exact - weight).abs().max()) <= float(weight.abs().max()) / 127 / 2 * 1.01
    x = torch.randn(103, inputs, generator=noise)
    whole = product(kernels, packed, x)
    assert float((whole - (x @ exact.T + bias)).abs().max()) < 2e-3
    for start, count in ((0, 1), (5, 2), (40, 7), (96, 5), (3, 100)):
        part = product(kernels, packed, x[start : start + count].contiguous())
        assert torch.equal(part, whole[start : start + count])
    assert torch.equal(product(kernels, packed, x, threads=3), whole)


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


def test_cuts_and_neighbours_change_no_bit(int8: TorchEngine, kernels: ctypes.CDLL) -> None:
    model = int8._loop._model
    assert model.exact
    ids = text_ids(int8, 150)
    whole = logits_of(int8, ids)
    assert torch.equal(logits_of(int8, ids, [1, 2, 33, 34, 64, 97]), whole)
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
def test_tiny_models_stay_near_their_float32_selves(
    tmp_path: Path, make_tiny: Any, kernels: ctypes.CDLL, kind: str, changes: dict[str, Any]
) -> None:
    tiny = make_tiny(tmp_path, kind, **changes)
    ids = torch.randint(3, 400, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        theirs = tiny.reference(torch.tensor([ids])).logits[0]
    engine = load(tiny.spec(), "int8")
    try:
        assert engine.info.dtype == "int8"
        ours = logits_of(engine, ids, [1, 40])
        assert torch.equal(ours, logits_of(engine, ids))
        assert float(F.cosine_similarity(ours, theirs, dim=-1).min()) > 0.97
    finally:
        engine.close()


async def test_a_stream_resumes_token_for_token(int8: TorchEngine) -> None:
    request = Generation(prompt="The sea is", temperature=0.9, seed=3, max_tokens=12)
    whole = [t async for piece in int8.generate(request) for t in piece.tokens]
    for cut in (1, 6, 11):
        again = Generation(
            prompt="The sea is", temperature=0.9, seed=3, max_tokens=12, resume=whole[:cut]
        )
        rest = [t async for piece in int8.generate(again) for t in piece.tokens]
        assert whole[:cut] + rest == whole


def test_without_a_compiler_int8_is_slower_and_as_good(
    tiny: Any, tiny_engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "library", lambda: None)
    ids = random.Random(5).choices(range(3, 400), k=70)
    slow, plain = load(tiny.spec(), "int8"), load(tiny.spec(), "fp32")
    try:
        near = F.cosine_similarity(logits_of(slow, ids), logits_of(tiny_engine, ids), dim=-1)
        assert float(near.min()) > 0.97
        exact = logits_of(tiny_engine, ids)
        difference = (logits_of(plain, ids) - exact).abs().max() / exact.abs().max()
        assert float(difference) < 2e-5  # attention of torch instead of the kernel's
    finally:
        slow.close()
        plain.close()


def test_precisions_are_named_and_sized(smollm_spec: ModelSpec) -> None:
    from dataclasses import replace

    sizes = [estimate_bytes(replace(smollm_spec, precision=p)) for p in ("fp32", "bf16", "int8")]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < 800 << 20
    with pytest.raises(FailedPrecondition, match="int3") as caught:
        check(replace(smollm_spec, precision="int3"))
    assert caught.value.reason == "NO_ENGINE"
