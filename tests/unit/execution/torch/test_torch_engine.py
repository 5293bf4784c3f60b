"""The engine from outside: answers, determinism, resuming, stopping, cancelling, bad requests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import pytest

from llmos.lib.errors import (
    FailedPrecondition,
    InvalidArgument,
    LLMOSError,
    OutOfRange,
    Unavailable,
)
from llmos.servers.execution.engine.base import ChatTurn, Generation, Piece
from llmos.servers.execution.engine.torch import load
from llmos.servers.execution.engine.torch.delivery import BACKLOG
from llmos.servers.execution.engine.torch.engine import TorchEngine
from llmos.servers.execution.engine.torch.sampling import Choice

FRANCE = Generation(chat=[ChatTurn("user", "What is the capital of France?")], temperature=0)


async def pieces_of(engine: TorchEngine, request: Generation) -> list[Piece]:
    return [piece async for piece in engine.generate(request)]


def joined(pieces: Sequence[Piece]) -> tuple[str, list[int], str]:
    text = "".join(piece.text for piece in pieces)
    return text, [t for piece in pieces for t in piece.tokens], pieces[-1].finish


async def answer(engine: TorchEngine, request: Generation) -> tuple[str, list[int], str]:
    return joined(await pieces_of(engine, request))


def open_jobs(engine: TorchEngine) -> int:
    return len(engine._loop._jobs.running) + len(engine._loop._jobs.waiting)


async def until_idle(engine: TorchEngine) -> None:
    async with asyncio.timeout(20):
        while open_jobs(engine):
            await asyncio.sleep(0.01)


async def test_it_knows_the_capital_of_france(smollm: TorchEngine) -> None:
    pieces = await pieces_of(smollm, FRANCE)
    text, tokens, finish = joined(pieces)
    assert text == "The capital of France is Paris." and finish == "stop"
    last = pieces[-1]
    assert last.completion_tokens == len(tokens) and last.tokens == [2]
    assert all(piece.prompt_tokens == 37 for piece in pieces)
    assert last.first_token_s > 0 and last.decode_s > 0
    assert [piece.finish for piece in pieces[:-1]] == [""] * (len(pieces) - 1)


async def test_neighbours_change_nothing(smollm: TorchEngine) -> None:
    requests = [
        replace(FRANCE, max_tokens=6),
        Generation(prompt="Once upon a time", temperature=1.2, seed=5, max_tokens=9),
        Generation(prompt="1 2 3 4", temperature=0.8, top_p=0.9, seed=1, max_tokens=12),
        Generation(prompt="A " * 90, temperature=0.8, top_k=5, seed=2, max_tokens=4),
    ]
    alone = [await answer(smollm, request) for request in requests]
    together = await asyncio.gather(*(answer(smollm, request) for request in requests))
    assert together == alone


async def test_seeds_decide(tiny_engine: TorchEngine) -> None:
    request = Generation(prompt="cats", temperature=1.0, seed=11, max_tokens=20)
    first = await answer(tiny_engine, request)
    assert await answer(tiny_engine, request) == first
    assert (await answer(tiny_engine, replace(request, seed=2**64 - 1)))[1] != first[1]
    greedy = await answer(tiny_engine, replace(request, temperature=0))
    assert await answer(tiny_engine, replace(request, top_k=1)) == greedy
    assert await answer(tiny_engine, replace(request, top_p=1e-9)) == greedy


@pytest.mark.parametrize(
    "request_",
    [
        Generation(prompt="Der Fuchs 😀", temperature=0, max_tokens=24),
        Generation(prompt="Der Fuchs", temperature=1.1, seed=9, max_tokens=24),
        Generation(prompt="cats 😀", temperature=1.3, top_p=0.9, top_k=200, seed=4, max_tokens=24),
    ],
)
async def test_resuming_at_any_token_is_the_unbroken_stream(
    tiny_engine: TorchEngine, request_: Generation
) -> None:
    pieces = await pieces_of(tiny_engine, request_)
    whole = joined(pieces)
    stops = [(), (whole[0][9:12],), (whole[0][5:7], whole[0][-2:])]
    for stop in stops:
        request = replace(request_, stop=stop)
        whole = joined(await pieces_of(tiny_engine, request))
        assert not any(s in whole[0] for s in stop)
        said = await texts_by_token(tiny_engine, request)
        for cut in range(len(whole[1]) + 1):
            resumed = await pieces_of(tiny_engine, replace(request, resume=whole[1][:cut]))
            text, tokens, finish = joined(resumed)
            assert (said[cut] + text, whole[1][:cut] + tokens, finish) == whole
            assert resumed[-1].completion_tokens == len(whole[1])


async def texts_by_token(engine: TorchEngine, request: Generation) -> list[str]:
    """Return what has been said after each token; pieces may join several when read late."""
    said = [""]
    pieces = await pieces_of(engine, request)
    tokens = [t for piece in pieces for t in piece.tokens]
    sequence = engine._prepare(request)
    for token in tokens:
        said.append(said[-1] + sequence.accept(Choice(token)).text)
    return said


async def test_a_resumed_smollm_goes_on(smollm: TorchEngine) -> None:
    request = Generation(prompt="The sea is", temperature=0.9, seed=3, max_tokens=10)
    whole = await answer(smollm, request)
    for cut in (1, 5, 9):
        text, tokens, _ = await answer(smollm, replace(request, resume=whole[1][:cut]))
        assert whole[1][:cut] + tokens == whole[1] and whole[0].endswith(text)


async def test_stop_texts_are_not_part_of_the_answer(smollm: TorchEngine) -> None:
    text, _, finish = await answer(smollm, replace(FRANCE, stop=["ance is P", "zzz"]))
    assert (text, finish) == ("The capital of Fr", "stop")


async def test_max_tokens_and_the_context_end_it(tiny_engine: TorchEngine) -> None:
    assert tiny_engine.info.context_length == 256
    prompt = list(range(10, 210))
    _, tokens, finish = await answer(
        tiny_engine, Generation(tokens=prompt, temperature=0.9, seed=1)
    )
    assert len(tokens) <= 56 and (finish == "length") == (len(tokens) == 56)
    _, tokens, finish = await answer(tiny_engine, Generation(prompt="a", max_tokens=1))
    assert len(tokens) == 1 and finish in ("length", "stop")
    with pytest.raises(OutOfRange, match=r"200 tokens and 57 .* 256") as caught:
        await answer(tiny_engine, Generation(tokens=prompt, max_tokens=57))
    assert caught.value.reason == "CONTEXT_OVERFLOW"
    with pytest.raises(OutOfRange):
        await answer(tiny_engine, Generation(tokens=[5] * 256))


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Generation(), "EMPTY_PROMPT"),
        (Generation(prompt=""), "EMPTY_PROMPT"),
        (Generation(tokens=[]), "EMPTY_PROMPT"),
        (Generation(chat=[]), "EMPTY_PROMPT"),
        (Generation(prompt="a", tokens=[1]), "EMPTY_PROMPT"),
        (Generation(tokens=[416]), "BAD_TOKENS"),
        (Generation(tokens=[-1]), "BAD_TOKENS"),
        (Generation(prompt="a", resume=[99999]), "BAD_TOKENS"),
        (Generation(chat=[ChatTurn("robot", "hi")]), "BAD_CHAT"),
        (Generation(prompt="a", temperature=2.01), "BAD_SAMPLING"),
        (Generation(prompt="a", temperature=-0.1), "BAD_SAMPLING"),
        (Generation(prompt="a", temperature=math.nan), "BAD_SAMPLING"),
        (Generation(prompt="a", top_p=0), "BAD_SAMPLING"),
        (Generation(prompt="a", top_p=math.inf), "BAD_SAMPLING"),
        (Generation(prompt="a", top_k=-1), "BAD_SAMPLING"),
        (Generation(prompt="a", max_tokens=-1), "BAD_SAMPLING"),
        (Generation(prompt="a", seed=2**64), "BAD_SAMPLING"),
        (Generation(prompt="a", stop=["x"] * 17), "BAD_SAMPLING"),
        (Generation(prompt="a", stop=[""]), "BAD_SAMPLING"),
    ],
)
async def test_bad_requests_name_the_reason(
    tiny_engine: TorchEngine, request_: Generation, reason: str
) -> None:
    await until_idle(tiny_engine)  # others leave it a moment after their last token
    with pytest.raises(LLMOSError) as caught:
        await answer(tiny_engine, request_)
    assert caught.value.reason == reason and isinstance(caught.value, InvalidArgument)
    assert str(caught.value).endswith(".") and open_jobs(tiny_engine) == 0


async def test_closing_the_iterator_stops_the_work(smollm: TorchEngine) -> None:
    endless = Generation(prompt="count", temperature=1.5, max_tokens=4000)
    async with aclosing(cast("Any", smollm.generate(endless))) as stream:
        await anext(stream)
    await until_idle(smollm)
    task = asyncio.create_task(answer(smollm, endless))
    while not smollm._loop._jobs.running:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_idle(smollm)
    pages = smollm._loop._cache.pages
    assert pages.free == len(pages._users)  # their blocks are given back


async def test_a_slow_reader_pauses_its_sequence_only(tiny: Any) -> None:
    engine = load(tiny.spec(), "float32")
    try:
        slow = Generation(prompt="a", temperature=0, max_tokens=200, stop=())
        reference = await answer(engine, slow)
        assert len(reference[1]) > 2 * BACKLOG, "choose another prompt: this one ends early"
        stream: AsyncIterator[Piece] = engine.generate(slow)
        pieces = [await anext(stream)]
        job = engine._loop._jobs.running[0]
        quick = await answer(engine, Generation(prompt="b c", temperature=0, max_tokens=150))
        assert quick[2] in ("length", "stop")
        await asyncio.sleep(0.3)
        assert job.outlet.full and job.sequence.made <= BACKLOG + len(pieces[0].tokens) + 1
        pieces += [piece async for piece in stream]
        assert joined(pieces) == reference
    finally:
        engine.close()


async def test_more_requests_than_seats_wait_in_order(tiny_engine: TorchEngine) -> None:
    requests = [
        Generation(prompt=f"cats {i}", temperature=1, seed=i, max_tokens=5 + i % 7)
        for i in range(90)
    ]
    together = await asyncio.gather(*(answer(tiny_engine, request) for request in requests))
    for i in (0, 40, 89):
        assert together[i] == await answer(tiny_engine, requests[i])
    await until_idle(tiny_engine)


async def test_other_tasks_are_refused(tiny_engine: TorchEngine) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await tiny_engine.infer({}, [])
    assert caught.value.reason == "WRONG_TASK"


async def test_closing_the_engine_fails_open_streams(tiny: Any) -> None:
    engine = load(tiny.spec(), "float32")
    stream = engine.generate(Generation(prompt="a", temperature=0, max_tokens=250))
    await anext(stream)
    await asyncio.to_thread(engine.close)
    with pytest.raises(Unavailable) as caught:
        async for _ in stream:
            pass
    assert caught.value.reason == "CLOSING"
    with pytest.raises(Unavailable):
        await answer(engine, Generation(prompt="a"))


async def test_a_step_that_breaks_fails_its_streams_and_not_the_engine(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny.spec(), "float32")
    try:
        request = Generation(prompt="a", temperature=0, max_tokens=3)
        fine = await answer(engine, request)

        def broken(*_: object) -> None:
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(engine._loop._model, "step", broken)
            with pytest.raises(LLMOSError, match="out of memory"):
                await answer(engine, request)
        assert await answer(engine, request) == fine
    finally:
        engine.close()
