"""Sessions in process: contexts, recall, deletion that is real, and restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.lib.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    LLMOSError,
    NotFound,
    OutOfRange,
    Unavailable,
)
from llmos.servers.memory.sessions.context import AROUND, Reason
from llmos.servers.memory.sessions.models import NoModels
from llmos.servers.memory.sessions.sessions import Sessions, estimate
from llmos.servers.memory.sessions.store import SessionStore
from llmos.servers.memory.sessions.words import Settings, Turn

ME = "local"


class WordModels:
    """A tokenizer by words, and an embedder of which words are there: small, but it does it."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}
        self.embedded: Counter[str] = Counter()
        self.counted = 0
        self.version = "words@1"
        self.away = False

    async def count(self, model: str, texts: Sequence[str]) -> list[int]:
        if self.away:
            raise Unavailable("NO_SERVER", "Execution is away.")
        self.counted += len(texts)
        return [len(text.split()) for text in texts]

    async def embed(self, embedder: str, texts: Sequence[str]) -> tuple[str, list[bytes]]:
        if self.away:
            raise Unavailable("NO_SERVER", "Execution is away.")
        self.embedded.update(texts)
        vectors = np.zeros((len(texts), 256), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in text.lower().replace("?", "").replace(".", "").split():
                row[self.words.setdefault(word, len(self.words)) % 256] = 1
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return self.version, [row.tobytes() for row in vectors / np.maximum(norms, 1e-9)]


class Wall:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def models() -> WordModels:
    return WordModels()


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def make(
    tmp_path: Path, models: WordModels, wall: Wall
) -> AsyncIterator[Callable[..., Sessions]]:
    """Open the sessions of one directory again and again, as killed and restarted servers would."""
    opened: list[Sessions] = []

    def open_(some: Any = models) -> Sessions:
        opened.append(Sessions(SessionStore(tmp_path / "s.db"), some, "", wall))
        return opened[-1]

    yield open_
    for sessions in opened:
        await sessions.close()


SETTINGS = Settings(system="You are kind.", model="m", embedder="words")
TALK = [
    ("My dog Rex eats apples.", "Apples are fine for dogs."),
    ("Paris is the capital of France.", "Yes it is."),
    ("I like to play chess on Sundays.", "A fine game."),
    ("The train to Lyon leaves at nine.", "Be there in time."),
    ("It rains a lot in November.", "Take an umbrella."),
]


async def talk(sessions: Sessions, id: str = "a") -> list[int]:
    await sessions.create(ME, id, SETTINGS)
    turns = [
        Turn(role, text)
        for pair in TALK
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return await sessions.append(ME, id, turns, "r1")


async def test_all_is_given_when_it_fits(make: Any, models: WordModels) -> None:
    sessions = make()
    assert await talk(sessions) == list(range(1, 11))
    assert await sessions.append(ME, "a", [Turn("user", "again")], "r1") == list(range(1, 11))
    context = await sessions.context(ME, "a", 1000)
    assert [item.number for item in context.items] == list(range(11))
    assert context.items[0].reason is Reason.PINNED and context.notes == []
    assert sum(item.tokens for item in context.items[1:2]) == 5 + AROUND
    assert not models.embedded  # nothing has to be chosen
    counted = models.counted
    await sessions.context(ME, "a", 1000)
    assert models.counted == counted + 2  # system and summary only: turns are counted once


@pytest.mark.parametrize("budget", range(30, 200, 5))
async def test_a_context_keeps_its_budget(make: Any, budget: int) -> None:
    sessions = make()
    await talk(sessions)
    await sessions.update(ME, "a", {"summary": "They talked about dogs and trains."})
    context = await sessions.context(ME, "a", budget, "What does my dog Rex eat?")
    assert sum(item.tokens for item in context.items) <= budget
    numbers = [item.number for item in context.items if item.number]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 10


async def test_what_is_near_to_the_query_is_recalled_with_its_answer(
    make: Any, models: WordModels
) -> None:
    sessions = make()
    await talk(sessions)
    context = await sessions.context(ME, "a", 80, "What does my dog Rex eat?")
    recalled = [item for item in context.items if item.reason is Reason.RECALLED]
    assert [item.number for item in recalled] == [1, 2]
    assert recalled[0].score > 0.5
    assert {item.reason for item in context.items[3:]} == {Reason.RECENT}
    assert models.embedded["My dog Rex eats apples."] == 1
    await sessions.append(ME, "a", [Turn("user", "Which is the capital I named?")])
    context = await sessions.context(ME, "a", 80)  # for the newest turn of the user
    assert 3 in [i.number for i in context.items if i.reason is Reason.RECALLED]
    assert models.embedded["My dog Rex eats apples."] == 1


async def test_pinned_turns_and_the_summary(make: Any) -> None:
    sessions = make()
    await talk(sessions)
    (number,) = await sessions.append(ME, "a", [Turn("user", "I am allergic to nuts.", True)])
    for i in range(20):
        await sessions.append(ME, "a", [Turn("user", f"Small talk number {i} of many.")])
    await sessions.update(ME, "a", {"summary": "They talked about dogs and trains."})
    context = await sessions.context(ME, "a", 90)
    reasons = {item.number: item.reason for item in context.items if item.number}
    assert reasons[number] is Reason.PINNED
    assert [item.reason for item in context.items[:2]] == [Reason.PINNED, Reason.SUMMARY]
    with pytest.raises(OutOfRange, match="take 38 tokens") as caught:
        await sessions.context(ME, "a", 20)
    assert caught.value.reason == "BUDGET_TOO_SMALL"


async def test_without_models_it_estimates_and_says_so(make: Any, models: WordModels) -> None:
    sessions = make(NoModels())
    await talk(sessions)
    context = await sessions.context(ME, "a", 150, "dog")
    assert sum(item.tokens for item in context.items) <= 150
    assert len(context.notes) == 2 and "estimated: No execution" in context.notes[0]
    models.away = True
    assert len((await make().context(ME, "a", 150, "dog")).notes) == 2
    models.away = False
    assert (await make().context(ME, "a", 80, "dog")).notes == []  # estimates were not kept
    assert estimate("") == 0 and estimate("日本") == 2
    await sessions.create(ME, "plain", Settings())
    await sessions.append(ME, "plain", [Turn("user", "x" * 300)] * 5)
    notes = (await sessions.context(ME, "plain", 250)).notes
    assert "names no model" in notes[0] and "nor server has an embedder" in notes[1]


async def test_another_version_of_the_embedder_makes_vectors_anew(
    make: Any, models: WordModels
) -> None:
    sessions = make()
    await talk(sessions)
    await sessions.context(ME, "a", 80, "my dog Rex")
    models.version = "words@2"
    context = await sessions.context(ME, "a", 80, "my dog Rex")
    assert Reason.RECALLED in [item.reason for item in context.items]
    assert models.embedded["My dog Rex eats apples."] == 2


async def test_what_is_acknowledged_survives(make: Any, models: WordModels) -> None:
    first = make()
    await talk(first)
    before = await first.context(ME, "a", 80, "my dog Rex")
    again = make()  # the first one is not closed, as after kill -9
    assert (await again.get(ME, "a")).turns == 10
    assert await again.context(ME, "a", 80, "my dog Rex") == before
    assert models.embedded["My dog Rex eats apples."] == 1
    assert await again.append(ME, "a", [Turn("user", "x")], "r1") == list(range(1, 11))
    assert await again.append(ME, "a", [Turn("user", "x")]) == [11]


def left(folder: Path, text: str) -> bool:
    return any(text.encode() in file.read_bytes() for file in folder.iterdir())


async def test_what_is_deleted_is_in_no_file(make: Any, tmp_path: Path) -> None:
    sessions = make()
    await talk(sessions)
    await talk(sessions, "b")
    secret = await sessions.append(ME, "a", [Turn("user", "The code is rosebud-77.")])
    await sessions.context(ME, "a", 80, "code rosebud-77")
    assert left(tmp_path, "rosebud")
    assert await sessions.delete_turns(ME, "a", [*secret, 4711]) == 1
    assert not left(tmp_path, "rosebud")
    context = await sessions.context(ME, "a", 80, "code is rosebud-77.")
    assert "rosebud" not in str([item.content for item in context.items])
    assert await sessions.append(ME, "a", [Turn("user", "next")]) == [12]
    assert await sessions.delete(ME, "b")
    assert not await sessions.delete(ME, "b")
    with pytest.raises(NotFound):
        await sessions.context(ME, "b", 80)
    await sessions.update(ME, "a", {"system": "New."})
    assert not left(tmp_path, "You are kind.")
    assert await sessions.delete(ME, "a")
    assert not left(tmp_path, "umbrella")
    assert [file.name for file in tmp_path.iterdir() if file.stat().st_size > 200_000] == []


async def test_sessions_end_by_time(make: Any, wall: Wall, tmp_path: Path) -> None:
    sessions = make()
    await sessions.create(ME, "short", Settings(ttl_s=60, system="gone soon"))
    await sessions.create(ME, "long", Settings())
    wall.now += 50
    await sessions.append(ME, "short", [Turn("user", "still here")])
    wall.now += 50
    await sessions.tick()
    assert [s.id for s in await sessions.page(ME)] == ["long", "short"]
    wall.now += 11
    await sessions.tick()
    assert [s.id for s in await sessions.page(ME)] == ["long"]
    assert not left(tmp_path, "gone soon") and not left(tmp_path, "still here")


async def test_a_session_is_over_when_its_time_is_and_not_at_the_next_look(
    make: Any, wall: Wall, tmp_path: Path
) -> None:
    sessions = make()
    await sessions.create(ME, "short", Settings(ttl_s=60, system="gone soon"))
    await sessions.create(ME, "later", Settings(ttl_s=90))
    wall.now += 60
    with pytest.raises(NotFound):
        await sessions.get(ME, "short")
    assert not left(tmp_path, "gone soon")
    wall.now += 30
    with pytest.raises(NotFound):
        await sessions.append(ME, "later", [Turn("user", "too late")])
    await sessions.create(ME, "changed", Settings())
    await sessions.update(ME, "changed", {"ttl_s": 5})
    wall.now += 5
    assert await sessions.page(ME) == []


async def test_tenants_know_nothing_of_each_other(make: Any) -> None:
    sessions = make()
    await talk(sessions)
    other = await sessions.create("other", "a", Settings(system="Mine."))
    assert other.turns == 0
    assert [s.turns for s in await sessions.page(ME)] == [10]
    await sessions.delete("other", "a")
    with pytest.raises(NotFound) as caught:
        await sessions.get("other", "a")
    assert caught.value.reason == "NO_SUCH_SESSION"
    assert (await sessions.get(ME, "a")).turns == 10


async def test_pages_and_exports(make: Any) -> None:
    sessions = make()
    for i in range(5):
        await sessions.create(ME, f"s{i}", Settings())
    assert [s.id for s in await sessions.page(ME, "s1", 2)] == ["s2", "s3"]
    for _ in range(3):
        await sessions.append(ME, "s0", [Turn("user", "hello"), Turn("tool", "hi")] * 60)
    turns = [turn async for turn in sessions.export(ME, "s0")]
    assert [turn.number for turn in turns] == list(range(1, 361))
    made = await sessions.create(ME, "", Settings())
    assert len(made.id) == 32


async def test_bad_input_is_refused(make: Any) -> None:
    sessions = make()
    await sessions.create(ME, "a", SETTINGS)
    assert (await sessions.create(ME, "a", SETTINGS)).id == "a"

    async def refused(error: type[LLMOSError], reason: str, work: Any) -> None:
        with pytest.raises(error) as caught:
            await work
        assert caught.value.reason == reason

    await refused(AlreadyExists, "SESSION_EXISTS", sessions.create(ME, "a", Settings()))
    for id in ("a b", "x" * 129, "é", "../x", "a\n"):
        await refused(InvalidArgument, "BAD_SESSION", sessions.create(ME, id, Settings()))
    for bad in (
        Settings(system="x" * (1 << 20) + "x"),
        Settings(model="m" * 300),
        Settings(ttl_s=1 << 60),
    ):
        await refused(InvalidArgument, "BAD_SESSION", sessions.create(ME, "b", bad))
    for turns in (
        [],
        [Turn("user", "x")] * 1001,
        [Turn("robot", "x")],
        [Turn("user", "")],
        [Turn("user", "x" * (1 << 20) + "x")],
        [Turn("user", "fine"), Turn("user", "")],
    ):
        await refused(InvalidArgument, "BAD_TURN", sessions.append(ME, "a", turns))
    await refused(NotFound, "NO_SUCH_SESSION", sessions.append(ME, "b", [Turn("user", "x")]))
    await refused(NotFound, "NO_SUCH_SESSION", sessions.update(ME, "b", {"system": ""}))
    await refused(NotFound, "NO_SUCH_SESSION", sessions.delete_turns(ME, "b", [1]))
    await refused(InvalidArgument, "BAD_BUDGET", sessions.context(ME, "a", 0))
    await refused(InvalidArgument, "BAD_PAGE", sessions.page(ME, "", 1001))
    assert (await sessions.get(ME, "a")).turns == 0


async def test_a_damaged_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"this is not a database, but it may be somebody's" * 100)
    before = path.read_bytes()
    with pytest.raises(FailedPrecondition) as caught:
        SessionStore(path)
    assert caught.value.reason == "BAD_STATE"
    assert path.read_bytes() == before
