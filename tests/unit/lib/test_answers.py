"""The window of answers that keeps calls from running twice: joined, kept, and bounded."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from functools import partial

import pytest

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib import answers
from llmos.lib.answers import Answers, Outcome
from llmos.lib.errors import Unavailable


class Work:
    def __init__(self, reply: bytes = b"done") -> None:
        self.runs = 0
        self.reply = reply
        self.go = asyncio.Event()

    async def __call__(self) -> Outcome:
        self.runs += 1
        await self.go.wait()
        return self.reply, None


def never() -> bool:
    return False


def key(name: str) -> answers.Key:
    return ("tenant", "/s/m", name)


async def test_a_second_call_joins_the_first_and_later_ones_get_its_answer() -> None:
    window, work = Answers(), Work()
    both = [asyncio.ensure_future(window.once(key("a"), work, never)) for _ in range(2)]
    await asyncio.sleep(0)
    work.go.set()
    assert await asyncio.gather(*both) == [(b"done", None)] * 2
    assert await window.once(key("a"), None, never) == (b"done", None)
    assert work.runs == 1


async def test_what_is_not_known_is_not_run() -> None:
    with pytest.raises(Unavailable) as info:
        await Answers().once(key("a"), None, never)
    assert info.value.reason == "KERNEL_LOST_MAY_HAVE_RUN"


async def test_one_of_two_is_cancelled_and_the_work_goes_on() -> None:
    window, work = Answers(), Work()
    first, second = (asyncio.ensure_future(window.once(key("a"), work, never)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    work.go.set()
    assert await second == (b"done", None)


async def test_abandoned_work_goes_on_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ALONE_S", 0.05)
    window, work = Answers(), Work()
    call = asyncio.ensure_future(window.once(key("a"), work, lambda: True))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    joined = asyncio.ensure_future(window.once(key("a"), None, lambda: True))
    await asyncio.sleep(0.2)
    assert not joined.done()
    joined.cancel()
    await asyncio.sleep(0.2)
    with pytest.raises(Unavailable):  # nobody came: it was stopped, and nothing is known of it
        await window.once(key("a"), None, never)


async def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "KEPT", 10)
    monkeypatch.setattr(answers, "KEPT_BYTES", 1000)

    async def knows(window: Answers, name: str) -> bool:
        try:
            await window.once(key(name), None, never)
        except Unavailable:
            return False
        return True

    def done(size: int) -> Work:
        work = Work(bytes(size))
        work.go.set()
        return work

    window = Answers()
    for i in range(20):
        await window.once(key(f"{i}"), done(1), never)
    assert not await knows(window, "9") and await knows(window, "10")
    await window.once(key("large"), done(999), never)
    assert not await knows(window, "18") and await knows(window, "large")
    monkeypatch.setattr(answers, "KEPT_S", -1.0)
    assert not await knows(window, "large")


async def test_a_cancelled_outcome_is_not_kept() -> None:
    async def stopped() -> Outcome:
        return None, pb.Status(code=1)

    window = Answers()
    await window.once(key("a"), stopped, never)
    with pytest.raises(Unavailable):
        await window.once(key("a"), None, never)


async def test_an_outcome_is_kept_without_what_it_was_made_of() -> None:
    class Request:
        pass

    answers = Answers()
    request = Request()
    gone = weakref.ref(request)
    holder: contextvars.ContextVar[Request] = contextvars.ContextVar("holder")

    async def work(request: Request) -> Outcome:
        holder.set(request)
        return b"reply", None

    key = ("tenant", "/x/Y", "id")
    assert await answers.once(key, partial(work, request), lambda: False) == (b"reply", None)
    del request
    gc.collect()
    assert gone() is None
    assert await answers.once(key, None, lambda: False) == (b"reply", None)
    answers.close()
