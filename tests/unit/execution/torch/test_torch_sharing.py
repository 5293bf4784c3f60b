"""Blocks that come from the store of prefixes and go there: the same tokens, whatever it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from llmos.servers.execution.engine.base import Generation, Piece
from llmos.servers.execution.engine.prefix import Fill, SharesPrefixes
from llmos.servers.execution.engine.torch import load
from llmos.servers.execution.engine.torch.engine import TorchEngine
from llmos.servers.execution.engine.torch.pages import BLOCK
from llmos.servers.execution.engine.torch.schedule import Job

PROMPT = [3 + i * 7 % 400 for i in range(5 * BLOCK + 9)]


class Store:
    """Blocks in a dictionary, by tenant and key."""

    wanted = True

    def __init__(self) -> None:
        self.blocks: dict[tuple[str, bytes], bytes] = {}
        self.asked = 0

    async def find(self, tenant: str, keys: Sequence[bytes], held: int = 0) -> Sequence[memoryview]:
        self.asked += 1
        found = []
        for key in keys[held:]:
            if (tenant, key) not in self.blocks:
                break
            found.append(memoryview(self.blocks[tenant, key]).toreadonly())
        return found

    def offer(
        self, tenant: str, keys: Sequence[bytes], depth: int, cost_s: float, fill: Fill
    ) -> None:
        assert keys and depth >= 0 and cost_s >= 0
        data = bytearray(len(keys) * self.size)
        fill(memoryview(data))
        for i, key in enumerate(keys):
            self.blocks.setdefault((tenant, key), bytes(data[i * self.size : (i + 1) * self.size]))

    size = 0


@contextmanager
def worker(tiny: object, precision: str, store: Store | None) -> Iterator[TorchEngine]:
    engine = load(tiny.spec(), precision)  # type: ignore[attr-defined]
    try:
        if store is not None:
            assert isinstance(engine, SharesPrefixes)
            store.size = engine.block_bytes
            engine.share(store)
        yield engine
    finally:
        engine.close()


async def say(
    engine: TorchEngine, *, tenant: str = "a", resume: Sequence[int] = (), more: int = 40
) -> tuple[list[int], Piece]:
    wanted = Generation(
        tokens=PROMPT,
        max_tokens=more,
        temperature=0.8,
        seed=4,
        tenant=tenant,
        resume=resume,
        logit_bias={2: -100.0},
    )
    pieces = [piece async for piece in engine.generate(wanted)]
    return [token for piece in pieces for token in piece.tokens], pieces[-1]


@pytest.mark.parametrize("precision", ["float32", "int8"])
async def test_replicas_share_what_they_have_read(tiny: object, precision: str) -> None:
    store = Store()
    with worker(tiny, precision, None) as alone:
        expected, last = await say(alone)
        assert last.cached_tokens == 0
    with worker(tiny, precision, store) as first:
        assert (await say(first))[0] == expected
    assert len(store.blocks) == (len(PROMPT) + len(expected) - 1) // BLOCK
    with worker(tiny, precision, store) as second:
        tokens, last = await say(second)
        assert tokens == expected and last.cached_tokens == 5 * BLOCK
        asked = store.asked
        tokens, last = await say(second)
        assert tokens == expected and last.cached_tokens == 5 * BLOCK
        assert store.asked == asked, "what the cache holds is not asked for"
        tokens, last = await say(second, tenant="b")
        assert tokens == expected and last.cached_tokens == 0, "another tenant's is not found"


async def test_a_store_that_forgets_costs_time_only(tiny: object) -> None:
    store = Store()
    with worker(tiny, "float32", store) as first:
        expected, _ = await say(first)
    del store.blocks[list(store.blocks)[3]]
    with worker(tiny, "float32", store) as second:
        tokens, last = await say(second)
        assert tokens == expected and last.cached_tokens == 3 * BLOCK


async def test_a_text_cut_off_goes_on_from_the_store(tiny: object) -> None:
    store = Store()
    with worker(tiny, "float32", store) as first:
        expected, _ = await say(first)
    with worker(tiny, "float32", store) as second:
        tokens, last = await say(second, resume=expected[:25])
        assert tokens == expected[25:] and last.cached_tokens == len(PROMPT), "and what was said"


async def test_layouts_tell_what_differs_apart(tiny: object) -> None:
    layouts = set()
    for precision in ("float32", "bfloat16", "int8", "int4"):
        with worker(tiny, precision, None) as engine:
            layouts.add(engine.layout)
            assert len(engine.layout) <= 512 and engine.block_bytes > 0
    assert len(layouts) == 4


async def test_a_step_copies_blocks_of_one_text_and_of_those_that_end(tiny: object) -> None:
    offers: list[int] = []

    class Counting(Store):
        def offer(self, *args: Any) -> None:
            offers.append(len(args[1]))
            super().offer(*args)

    with worker(tiny, "float32", Counting()) as engine:
        sharing = engine._loop._sharing
        assert sharing is not None
        steps: list[tuple[int, int]] = []
        some = sharing.offer_some

        def watched(jobs: Sequence[Job]) -> None:
            before = len(offers)
            some(jobs)
            ended = sum(1 for job in jobs if job.sequence.finish)
            steps.append((len(offers) - before, ended))

        sharing.offer_some = watched  # type: ignore[method-assign]
        await asyncio.gather(*(say(engine, tenant=f"t{i}") for i in range(4)))
    assert sum(offers) == 4 * ((len(PROMPT) + 40 - 1) // BLOCK)
    assert all(count <= ended + 1 for count, ended in steps)
