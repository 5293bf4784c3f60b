"""Blocks, prefixes, classes and preemption, without a model."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence as Listing
from typing import Any, cast

import pytest

from llmos.servers.execution.engine.base import BATCH, INTERACTIVE, NORMAL
from llmos.servers.execution.engine.torch.delivery import Outlet
from llmos.servers.execution.engine.torch.lookup import Lookup
from llmos.servers.execution.engine.torch.pages import BLOCK, Pages, chain, root
from llmos.servers.execution.engine.torch.sampling import Choice, Sampler
from llmos.servers.execution.engine.torch.schedule import (
    MAX_RUNNING,
    PREFILL,
    PREFILL_BESIDE,
    Chunk,
    Job,
    Scheduler,
)
from llmos.servers.execution.engine.torch.sequence import Plan, Sequence

GREEDY = Sampler(0.0, 1.0, 0, 0)


class Silence:
    """A text stream that says nothing."""

    stopped = False

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


async def job(
    tokens: int | Listing[int], *, rank: int = NORMAL, tenant: str = "a", most: int = 4096
) -> Job:
    ids = list(range(1, tokens + 1)) if isinstance(tokens, int) else list(tokens)
    plan = Plan(ids, most, GREEDY, rank=rank, tenant=tenant)
    sequence = Sequence(plan, cast("Any", Silence()), frozenset())
    return Job(sequence, Outlet(lambda: None), rank, tenant)


def compute(scheduler: Scheduler, pages: Pages, chunks: Listing[Chunk]) -> None:
    """Do what the step loop does, but for the numbers."""
    for chunk in chunks:
        sequence = chunk.job.sequence
        assert len(chunk.job.table) * BLOCK >= sequence.fed + chunk.count
        sequence.fed += chunk.count
        chunk.job.register(pages)
        if chunk.job.left == 0:
            sequence.accept(Choice(7))
            if sequence.finish:
                scheduler.drop(chunk.job)


def step(scheduler: Scheduler, pages: Pages) -> list[Chunk]:
    scheduler.sweep()
    chunks = scheduler.plan(scheduler.running)
    compute(scheduler, pages, chunks)
    return chunks


def test_full_blocks_are_found_again_by_their_tenant_only() -> None:
    pages = Pages(4)
    first = chain(root("a"), range(BLOCK))
    second = chain(first, range(BLOCK))
    mine = [pages.take() or 0, pages.take() or 0]
    for block, key in zip(mine, (first, second), strict=True):
        pages.register(block, key)
    assert pages.match([first, second]) == mine and pages.free == 2
    assert pages.match([chain(root("b"), range(BLOCK))]) == []
    pages.release(mine)
    pages.release(mine)
    assert pages.free == 4 and pages.match([first]) == mine[:1]
    pages.release(mine[:1])
    taken = [pages.take() for _ in range(3)]
    assert mine[1] in taken, "the end of a chain goes before its beginning"
    assert pages.match([first, second]) == mine[:1]
    assert pages.take() is None
    pages.release(mine[:1], forget=True)
    assert pages.match([first]) == []


def test_pages_keep_count_whatever_happens() -> None:
    rng, pages, held = random.Random(3), Pages(12), []
    keys = [chain(root("x"), [i]) for i in range(9)]
    for _ in range(4000):
        action = rng.random()
        if action < 0.4 and (block := pages.take()) is not None:
            if rng.random() < 0.7:
                pages.register(block, rng.choice(keys))
            held.append([block])
        elif action < 0.6:
            start = rng.randrange(9)
            held.append(pages.match(keys[start : start + 3]))
        elif held:
            pages.release(held.pop(rng.randrange(len(held))), forget=rng.random() < 0.1)
        used = {block for blocks in held for block in blocks}
        assert pages.free == 12 - len(used)
        assert set(pages._found.values()) <= used | set(pages._idle)


async def test_a_second_request_reads_only_what_is_new() -> None:
    pages = Pages(64)
    scheduler = Scheduler(pages)
    first = await job(100, most=1)
    scheduler.add(first)
    while scheduler.running or scheduler.waiting:
        step(scheduler, pages)
    again, other = await job(100, most=1), await job(100, most=1, tenant="b")
    scheduler.add(again)
    scheduler.add(other)
    step(scheduler, pages)
    assert again.sequence.cached == 96 and other.sequence.cached == 0
    whole = await job(96, most=1)  # at least one token is read, to have something to go on from
    scheduler.add(whole)
    step(scheduler, pages)
    assert whole.sequence.cached == 64


async def test_a_person_comes_first_and_batch_gives_way() -> None:
    pages = Pages(400)
    scheduler = Scheduler(pages)
    batch = [await job([i] * 40, rank=BATCH) for i in range(MAX_RUNNING)]
    for one in batch:
        scheduler.add(one)
    while any(one.left > 1 for one in batch):
        step(scheduler, pages)
    person = await job(32, rank=INTERACTIVE)
    scheduler.add(person)
    chunks = step(scheduler, pages)
    assert [chunk.job for chunk in chunks] == [person] and person.left == 1
    assert len(scheduler.running) == MAX_RUNNING and scheduler.preemptions == 1
    assert scheduler.waiting == [batch[-1]]
    assert len(step(scheduler, pages)) == MAX_RUNNING


async def test_batch_is_not_starved_by_long_prompts_of_persons() -> None:
    pages = Pages(4000)
    scheduler = Scheduler(pages)
    batch = await job(3, rank=BATCH)
    scheduler.add(batch)
    step(scheduler, pages)
    for i in range(8):
        scheduler.add(await job([i] * 3000, rank=INTERACTIVE))
    steps = [any(c.job is batch for c in step(scheduler, pages)) for _ in range(20)]
    assert steps.count(True) == 4


async def test_a_short_prompt_does_not_wait_for_long_ones() -> None:
    pages = Pages(2000)
    scheduler = Scheduler(pages)
    talkers = [await job([i] * 5) for i in range(16)]
    for one in talkers:
        scheduler.add(one)
    step(scheduler, pages)
    long, short = await job([99] * 4000), await job([98] * 32)
    scheduler.add(long)
    scheduler.add(short)
    for _ in range(3):
        chunks = step(scheduler, pages)
        read = sum(chunk.count for chunk in chunks if chunk.job not in talkers)
        assert read <= PREFILL_BESIDE and {c.job for c in chunks} >= set(talkers)
        if short.sequence.made:
            break
    assert short.sequence.made and long.sequence.fed, "and the long one gets on, too"
    assert PREFILL > PREFILL_BESIDE


async def test_prompts_of_batch_wait_for_a_person_too() -> None:
    pages = Pages(400)
    scheduler = Scheduler(pages)
    for i in range(8):
        scheduler.add(await job([i] * 200, rank=BATCH))
    step(scheduler, pages)
    person = await job(64, rank=INTERACTIVE)
    scheduler.add(person)
    assert [(c.job, c.count) for c in step(scheduler, pages)] == [(person, 64)]
    assert person.sequence.made


async def test_where_rows_take_time_a_short_prompt_is_read_apart() -> None:
    pages = Pages(2000)
    scheduler = Scheduler(pages, apart=True)
    talkers = [await job([i] * 5) for i in range(16)]
    for one in talkers:
        scheduler.add(one)
    step(scheduler, pages)
    long = await job([99] * 4000)
    scheduler.add(long)
    assert {c.job for c in step(scheduler, pages)} == {*talkers, long}
    for i in range(6):  # they come faster than they are read: talkers have every other step
        scheduler.add(await job([90 + i] * 40, most=1))
    apart = [talkers[0] not in {c.job for c in step(scheduler, pages)} for _ in range(6)]
    assert apart == [True, False, True, False, True, False]
    assert all(one.sequence.made == 5 for one in talkers)


async def test_a_short_prompt_that_comes_during_a_step_is_read_before_it_goes_on() -> None:
    pages = Pages(64)
    scheduler = Scheduler(pages, apart=True)
    talkers = [await job([i] * 40, tenant=str(i)) for i in range(3)]
    for talker in talkers:
        scheduler.add(talker)
    while any(talker.left > 1 for talker in talkers):
        step(scheduler, pages)
    step(scheduler, pages)  # of those who decode; the newcomers come during it
    newcomers = [await job([10 + i] * 30, tenant="n") for i in range(4)]
    for newcomer in newcomers:
        scheduler.add(newcomer)
    chunks = scheduler.interrupt()
    assert [c.job for c in chunks] == newcomers[:3], "more would keep those who decode for long"
    compute(scheduler, pages, chunks)
    assert scheduler.interrupt() == [], "as many in all between two tokens of the others"
    assert [c.job for c in step(scheduler, pages)] == newcomers[3:]
    scheduler.add(late := await job([20] * 30, tenant="n"))
    mixed = {c.job: c.count for c in step(scheduler, pages)}
    assert set(mixed) == {*talkers, *newcomers, late} and mixed[late] == 30
    scheduler.add(await job([21] * 40, tenant="n"))
    assert scheduler.interrupt() == [], "30 apart and 30 in the step itself"


async def test_during_a_step_nobody_makes_room() -> None:
    pages = Pages(8)
    scheduler = Scheduler(pages, apart=True)
    batch = await job(6 * BLOCK, rank=BATCH)
    scheduler.add(batch)
    while batch.left > 1:
        step(scheduler, pages)
    person, table = await job([9] * 60, rank=INTERACTIVE), list(batch.table)
    scheduler.add(person)
    assert scheduler.interrupt() == [] and batch.table == table
    assert [c.job for c in step(scheduler, pages)] == [person], "it is driven out after the step"
    long = await job([8] * (PREFILL_BESIDE + 1), rank=INTERACTIVE)
    scheduler.add(long)
    assert scheduler.interrupt() == [], "a long prompt is read beside the others"


async def test_a_person_whose_prompt_is_read_waits_for_no_batch() -> None:
    scheduler = Scheduler(Pages(64), apart=True)
    scheduler.add(person := await job([9] * 60, rank=INTERACTIVE))
    scheduler.sweep()
    assert [c.job for c in scheduler.plan(scheduler.running)] == [person]
    scheduler.add(batch := await job([8] * 30, rank=BATCH))
    assert scheduler.interrupt() == []
    scheduler.add(other := await job([7] * 30, rank=INTERACTIVE))
    assert [c.job for c in scheduler.interrupt()] == [other] and batch in scheduler.waiting


async def test_sequences_that_outgrow_the_cache_take_turns_and_all_end() -> None:
    pages = Pages(12)  # three sequences of 128 tokens; six want to grow to 160
    scheduler = Scheduler(pages)
    jobs = [await job([i] * 40, most=120, rank=NORMAL + i % 2) for i in range(6)]
    for one in jobs:
        scheduler.add(one)
    for _ in itertools.takewhile(lambda _: scheduler.running or scheduler.waiting, range(5000)):
        assert step(scheduler, pages)
        used = [block for one in scheduler.running for block in one.table]
        assert len(used) == len(set(used)), "different texts share no block"
    assert all(one.sequence.finish == "length" for one in jobs)
    assert pages.free == 12 and scheduler.preemptions > 0


async def test_cancelled_jobs_give_their_blocks_back() -> None:
    pages = Pages(8)
    scheduler = Scheduler(pages)
    jobs = [await job([i] * 100) for i in range(4)]
    for one in jobs:
        scheduler.add(one)
    step(scheduler, pages)
    for one in jobs:
        one.cancelled = True
    scheduler.sweep()
    assert pages.free == 8 and not scheduler.running and not scheduler.waiting
    await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(3))
def test_guesses_are_what_followed_the_same_words_before(seed: int) -> None:
    rng = random.Random(seed)
    tokens = [rng.randrange(5) for _ in range(200)]
    lookup = Lookup()
    for end in range(1, len(tokens)):
        seen = tokens[:end]
        guess = lookup.guess(seen, 4)
        assert len(guess) <= 4
        if guess:
            follows = [at for at in range(2, end) if seen[at - 2 : at] == seen[-2:] and at < end]
            assert any(seen[at : at + len(guess)] == guess for at in follows)
    assert Lookup().guess([1, 2, 3, 4, 1, 2], 3) == [3, 4, 1]
    assert Lookup().guess([1, 2, 3], 3) == []
