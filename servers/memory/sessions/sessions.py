"""Sessions over a store, with models for tokens and vectors. Knows no gRPC."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from llmos.lib.errors import InvalidArgument, LLMOSError
from llmos.servers.memory.sessions.context import AROUND, Item, Text, pick
from llmos.servers.memory.sessions.models import Models
from llmos.servers.memory.sessions.recall import Recall
from llmos.servers.memory.sessions.store import SessionStore
from llmos.servers.memory.sessions.words import (
    Session,
    Settings,
    Turn,
    check_id,
    check_settings,
    check_turns,
)

MAX_PAGE = 1000
TICK_S = 30.0  # between two `tick`s
_NEAREST = 64  # turns looked at for recall
_SPOKEN = ("user", "assistant")
_PIECE = 100  # turns read at a time for an export

R = TypeVar("R")
Name = tuple[str, str]  # tenant, id


@dataclass(frozen=True)
class Context:
    """What a model should see, and what had to be done without."""

    items: list[Item]
    notes: list[str]


class Sessions:
    """All sessions. The file is touched on one thread, so that no event loop waits for a disk."""

    def __init__(
        self,
        store: SessionStore,
        models: Models,
        embedder: str = "",
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Take over `store`. embedder: of sessions that name none; empty = no recall."""
        self._store, self._models, self._embedder, self._wall = store, models, embedder, wall
        self._recall = Recall()
        self._thread = ThreadPoolExecutor(1, "sessions")
        self._embedding: defaultdict[Name, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def create(self, tenant: str, id: str, settings: Settings) -> Session:
        """Make a session. Raises InvalidArgument BAD_SESSION, AlreadyExists SESSION_EXISTS."""
        if id:
            check_id(id)
        check_settings(settings)
        await self._end_due()
        return await self._do(self._store.create, tenant, id, settings, self._wall())

    async def update(self, tenant: str, id: str, changes: Mapping[str, Any]) -> Session:
        """Change settings. Raises InvalidArgument BAD_SESSION, NotFound NO_SUCH_SESSION."""
        check_settings(replace(Settings(), **changes))
        await self._end_due()
        return await self._do(self._store.update, tenant, id, changes)

    async def get(self, tenant: str, id: str) -> Session:
        """Return a session. Raises NotFound NO_SUCH_SESSION."""
        await self._end_due()
        return await self._do(self._store.get, tenant, id)

    async def page(self, tenant: str, after: str = "", count: int = 0) -> list[Session]:
        """Return up to `count` sessions (0: 100) after an id. Raises InvalidArgument BAD_PAGE."""
        if count > MAX_PAGE:
            raise InvalidArgument("BAD_PAGE", f"Ask for at most {MAX_PAGE:,} sessions at a time.")
        await self._end_due()
        return await self._do(self._store.page, tenant, after, count or 100)

    async def append(
        self, tenant: str, id: str, turns: Sequence[Turn], request: str = ""
    ) -> list[int]:
        """Append turns; return their numbers.

        Raises InvalidArgument BAD_TURN, NotFound NO_SUCH_SESSION, ResourceExhausted SESSION_FULL.
        """
        check_turns(turns)
        await self._end_due()
        return await self._do(self._store.append, tenant, id, turns, request, self._wall())

    async def export(self, tenant: str, id: str) -> AsyncIterator[Turn]:
        """Yield all turns. Raises NotFound NO_SUCH_SESSION."""
        await self._end_due()
        last = 0
        while turns := await self._do(self._store.turns, tenant, id, last, _PIECE):
            for turn in turns:
                yield turn
            last = turns[-1].number

    async def delete_turns(self, tenant: str, id: str, numbers: Sequence[int]) -> int:
        """Delete turns, really; return how many. Raises NotFound NO_SUCH_SESSION."""
        await self._end_due()
        deleted = await self._do(self._store.delete_turns, tenant, id, numbers)
        await self._do(self._recall.forget, (tenant, id))
        return deleted

    async def delete(self, tenant: str, id: str) -> bool:
        """Delete a session, really; say whether it was there."""
        deleted = await self._do(self._store.delete, tenant, id)
        await self._do(self._recall.forget, (tenant, id))
        self._embedding.pop((tenant, id), None)
        return deleted

    async def context(self, tenant: str, id: str, budget: int, query: str = "") -> Context:
        """Return what a model should see.

        Raises InvalidArgument BAD_BUDGET, NotFound NO_SUCH_SESSION, OutOfRange BUDGET_TOO_SMALL.
        """
        if not budget:
            raise InvalidArgument("BAD_BUDGET", "Say how many tokens the context may have.")
        session = await self.get(tenant, id)
        turns = await self._do(self._store.turns, tenant, id)
        notes: list[str] = []
        settings = session.settings
        texts, turns = await self._counted(tenant, session, turns, notes)
        scores: dict[int, float] = {}
        total = sum(turn.tokens + AROUND for turn in turns) + sum(t.tokens + AROUND for t in texts)
        said = [turn.content for turn in turns if turn.role == "user"]
        query = query or (said[-1] if said else "")
        if total > budget and query:
            scores = await self._scores((tenant, id), settings.embedder, turns, query, notes)
        return Context(pick(budget, texts[0], texts[1], turns, scores), notes)

    async def tick(self) -> None:
        """Delete what is over; to be called every TICK_S, for those that nobody asks for."""
        for tenant, id in await self._do(self._store.expire, self._wall()):
            await self._do(self._recall.forget, (tenant, id))
            self._embedding.pop((tenant, id), None)

    async def _end_due(self) -> None:
        """Delete what is over before it is looked at."""
        if self._wall() >= self._store.due:
            await self.tick()

    async def close(self) -> None:
        """Close the file after what is being done."""
        await self._do(self._store.close)
        self._thread.shutdown()

    async def _counted(
        self, tenant: str, session: Session, turns: Sequence[Turn], notes: list[str]
    ) -> tuple[list[Text], list[Turn]]:
        """Return system text and summary, and the turns, with their tokens."""
        settings = session.settings
        fresh = [turn for turn in turns if not turn.tokens]
        texts = [settings.system, settings.summary, *(turn.content for turn in fresh)]
        cause = "the session names no model"
        if settings.model:
            try:
                counts = await self._models.count(settings.model, texts)
                found = {t.number: max(1, n) for t, n in zip(fresh, counts[2:], strict=True)}
                if found:
                    await self._do(self._store.counted, tenant, session.id, found)
                cause = ""
            except LLMOSError as exc:
                cause = exc.message
        if cause:
            counts = [estimate(text) for text in texts]
            found = {t.number: n for t, n in zip(fresh, counts[2:], strict=True)}
            notes.append(f"Tokens are estimated: {cause.rstrip('.')}.")
        both = [Text(text, n) for text, n in zip(texts[:2], counts[:2], strict=True)]
        return both, [replace(t, tokens=t.tokens or found[t.number]) for t in turns]

    async def _scores(
        self,
        name: Name,
        embedder: str,
        turns: Sequence[Turn],
        query: str,
        notes: list[str],
    ) -> dict[int, float]:
        """Return how near turns are to the query, by number; embeds those that are not yet."""
        embedder = embedder or self._embedder
        if not embedder:
            notes.append(
                "Older turns are not recalled: neither session nor server has an embedder."
            )
            return {}
        try:
            version, (wanted,) = await self._models.embed(embedder, [query])
            async with self._embedding[name]:
                known = await self._do(self._open, name, version)
                new = [t for t in turns if t.role in _SPOKEN and t.number not in known]
                if new:
                    texts = [turn.content for turn in new]
                    by, vectors = await self._models.embed(embedder, texts)
                    if by == version:  # else a new version came just now: the next call sees it
                        made = dict(zip([t.number for t in new], vectors, strict=True))
                        await self._do(self._keep, name, version, made)
        except LLMOSError as exc:
            if exc.reason == "NO_SUCH_SESSION":
                raise
            notes.append(f"Older turns are not recalled: {exc.message.rstrip('.')}.")
            return {}
        return await self._do(self._recall.search, (*name, version), wanted, _NEAREST)

    def _open(self, name: Name, version: str) -> set[int]:
        key = (*name, version)
        known = self._recall.numbers(key)
        if known is None:
            known = self._recall.fill(key, self._store.vectors(*name, version))
        return known

    def _keep(self, name: Name, version: str, vectors: Mapping[int, bytes]) -> None:
        kept = self._store.embedded(*name, version, vectors)
        if kept:  # what was deleted meanwhile is not
            self._recall.add((*name, version), {number: vectors[number] for number in kept})

    async def _do(self, function: Callable[..., R], *arguments: Any) -> R:
        # Shielded: a caller that goes away must not leave half of a method's steps undone.
        work = asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        return await asyncio.shield(work)


def estimate(text: str) -> int:
    """Return a guess of a text's tokens that is seldom too low: a third of its bytes."""
    return math.ceil(len(text.encode()) / 3)
