"""Vectors of texts from a causal model's hidden states, against those of transformers."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import Generation
from llmos.servers.execution.engine.torch import load
from llmos.servers.execution.engine.torch.engine import TorchEngine

TEXTS = ["the quick brown fox", "a", "one two three " * 12, "good friend"]


@pytest.mark.parametrize("pooling", ["", "mean", "last"])
async def test_they_are_those_of_transformers(
    tiny: Any, tiny_engine: TorchEngine, pooling: str
) -> None:
    engine = tiny_engine
    if pooling == "last":
        engine = load(tiny.spec(changes={"embed.pooling": '"last"'}), "float32")
    try:
        found = await engine.embed(TEXTS)
    finally:
        if engine is not tiny_engine:
            engine.close()
    assert found.vectors.dtype == np.float32 and found.vectors.shape == (4, 64)
    for text, vector in zip(TEXTS, found.vectors, strict=True):
        ids = torch.tensor([tiny_engine.tokenizer.encode(text)])
        with torch.inference_mode():
            states = tiny.reference.model(ids).last_hidden_state[0]
        pooled = states[-1] if pooling == "last" else states.mean(0)
        expected = (pooled / pooled.norm()).numpy()
        np.testing.assert_allclose(vector, expected, atol=2e-6)
    assert found.prompt_tokens == sum(len(tiny_engine.tokenizer.encode(t)) for t in TEXTS)


async def test_neighbours_and_cached_texts_change_nothing(tiny_engine: TorchEngine) -> None:
    alone = [(await tiny_engine.embed([text])).vectors[0] for text in TEXTS]

    async def talk() -> None:
        async for _ in tiny_engine.generate(Generation(prompt=TEXTS[2], max_tokens=20)):
            pass

    together, _, _ = await asyncio.gather(tiny_engine.embed(TEXTS * 20), talk(), talk())
    np.testing.assert_array_equal(together.vectors, np.stack(alone * 20))


async def test_long_and_empty_texts(tiny_engine: TorchEngine) -> None:
    found = await tiny_engine.embed(["short", "word " * 400])
    assert list(found.truncated) == [1]
    for texts in ([], ["a", ""]):
        with pytest.raises(InvalidArgument) as caught:
            await tiny_engine.embed(texts)
        assert caught.value.reason == "EMPTY_INPUT"


def test_a_pooling_that_is_not_known(tiny: Any) -> None:
    with pytest.raises(InvalidArgument, match="mean, last") as caught:
        load(tiny.spec(changes={"embed.pooling": '"max"'}))
    assert caught.value.reason == "BAD_OPTION"
