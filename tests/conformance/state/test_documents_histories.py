"""Random histories of two clients, checked against a simple model in the order of revisions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from state_world import SmallState, state_world

from llmos.lib.errors import Aborted, NotFound
from llmos.servers.storage.caller import Caller, become
from llmos.servers.storage.state.base import Documents
from llmos.servers.storage.state.model import (
    Compare,
    Delete,
    Document,
    Keys,
    Put,
    Read,
    Relation,
    Target,
    Transaction,
)

KEYS = ("a", "a/1", "a/2", "b")
ALL = Keys("", prefix=True)


@dataclass
class State:
    """The model: what the documents are after a revision."""

    documents: dict[str, Document] = field(default_factory=dict)

    def put(self, key: str, value: bytes, revision: int) -> Document:
        old = self.documents.get(key)
        made = Document(
            key,
            value,
            create_revision=old.create_revision if old else revision,
            mod_revision=revision,
            version=old.version + 1 if old else 1,
        )
        self.documents[key] = made
        return made

    def delete(self, keys: Keys) -> int:
        gone = [
            k for k in self.documents if k == keys.key or (keys.prefix and k.startswith(keys.key))
        ]
        for key in gone:
            del self.documents[key]
        return len(gone)

    def listed(self, prefix: str) -> list[Document]:
        return [self.documents[k] for k in sorted(self.documents) if k.startswith(prefix)]


Apply = Callable[[State, int], None]


@dataclass
class History:
    """What happened: changes by revision (each checks itself), and reads with theirs."""

    changes: dict[int, Apply] = field(default_factory=dict)
    reads: list[tuple[int, Callable[[State], None]]] = field(default_factory=list)

    def changed(self, revision: int, apply: Apply) -> None:
        assert revision not in self.changes, "two changes have one revision"
        self.changes[revision] = apply

    def replay(self, start: int) -> dict[int, State]:
        """Apply all in the order of revisions; return the states by revision."""
        states, state = {start: State()}, State()
        for revision in sorted(self.changes):
            state = State(dict(state.documents))
            self.changes[revision](state, revision)
            states[revision] = state
        return states


def bare(document: Document) -> Document:
    return Document(
        document.key,
        create_revision=document.create_revision,
        mod_revision=document.mod_revision,
        version=document.version,
    )


class Client:
    """Does what it is told, in its own order, and notes what it was answered."""

    def __init__(self, documents: Documents, history: History) -> None:
        self.documents = documents
        self.history = history
        self.last = 0  # revision: a client never sees the past again
        self.seen: dict[str, int] = {}  # key: mod_revision

    def at(self, revision: int) -> None:
        assert revision >= self.last, "a later call saw an earlier state"
        self.last = revision

    async def put(self, key: str, value: bytes, compare: bool) -> None:
        expected = self.seen.get(key, 0) if compare else None
        try:
            made = await self.documents.put(Put(key, value), expected)
        except Aborted as exc:
            self.seen[key] = int(exc.details["mod_revision"])
            assert self.seen[key] != expected
            return
        self.at(made.mod_revision)
        self.seen[key] = made.mod_revision

        def check(state: State, revision: int) -> None:
            old = state.documents.get(key)
            if expected is not None:
                assert (old.mod_revision if old else 0) == expected
            assert bare(state.put(key, value, revision)) == made

        self.history.changed(made.mod_revision, check)

    async def delete(self, keys: Keys) -> None:
        count, revision = await self.documents.delete(keys)
        self.at(revision)

        def check(state: State, _: int) -> None:
            assert state.delete(keys) == count

        if count:
            self.history.changed(revision, check)
        else:
            self.history.reads.append(
                (revision, lambda state: check(State(dict(state.documents)), 0))
            )

    async def read(self, prefix: str) -> None:
        page = await self.documents.list(prefix)
        self.at(page.revision)
        self.seen |= {d.key: d.mod_revision for d in page.documents}
        found = list(page.documents)

        def check(state: State) -> None:
            assert found == state.listed(prefix)

        self.history.reads.append((page.revision, check))

    async def get(self, key: str) -> None:
        try:
            document, revision = await self.documents.get(key)
        except NotFound:
            return
        self.at(revision)
        self.seen[key] = document.mod_revision

        def check(state: State) -> None:
            assert state.documents.get(key) == document

        self.history.reads.append((revision, check))

    async def move(self, source: str, target: str) -> None:
        """Move a document if there is one, in one transaction."""
        if source == target:
            return
        outcome = await self.documents.run(
            Transaction(
                [Delete(Keys(source)), Put(target, b"moved"), Read(ALL)],
                [Compare(source, Target.VERSION, Relation.GREATER, 0)],
                [Read(Keys(source))],
            )
        )
        self.at(outcome.revision)
        if not outcome.succeeded:
            assert not outcome.results[0].documents

            def nothing(state: State) -> None:
                assert source not in state.documents

            self.history.reads.append((outcome.revision, nothing))
            return

        def check(state: State, revision: int) -> None:
            assert source in state.documents
            state.delete(Keys(source))
            state.put(target, b"moved", revision)
            assert list(outcome.results[2].documents) == state.listed("")

        self.history.changed(outcome.revision, check)


Step = tuple[str, str, str, bytes, bool]
steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "delete", "read", "get", "move"]),
        st.sampled_from(KEYS),
        st.sampled_from(KEYS),
        st.binary(max_size=3),
        st.booleans(),
    ),
    max_size=12,
)


async def do(client: Client, plan: list[Step]) -> None:
    for kind, key, other, value, flag in plan:
        match kind:
            case "put":
                await client.put(key, value, flag)
            case "delete":
                await client.delete(Keys(key, prefix=flag))
            case "read":
                await client.read(key)
            case "get":
                await client.get(key)
            case "move":
                await client.move(key, other)


async def run_history(state: SmallState, one: list[Step], two: list[Step]) -> None:
    documents, history = state.documents, History()
    start = (await documents.list()).revision
    await asyncio.gather(do(Client(documents, history), one), do(Client(documents, history), two))
    end = (await documents.list()).revision
    states = history.replay(start)
    for revision, check in history.reads:
        check(states[max(at for at in states if at <= revision)])
    told = State()
    async with aclosing(documents.watch(ALL, start + 1)) as watch:
        async for step in watch:
            for document in step.documents:
                if document.version:
                    told.documents[document.key] = document
                else:
                    del told.documents[document.key]
            if step.revision in states:
                assert told.documents == states[step.revision].documents
            if step.revision >= end:
                break
    assert told.documents == states[max(states)].documents
    assert list((await documents.list()).documents) == told.listed("")


@pytest.mark.parametrize("way", ["in process", "gRPC"])
def test_histories_of_two_clients(way: str) -> None:
    """Every example is a tenant of its own in process; over gRPC it begins with a clean slate."""
    number = 0

    with TemporaryDirectory(prefix="llmos-") as folder, asyncio.Runner() as runner:
        world = state_world(way, Path(folder))
        state = runner.run(world.__aenter__())

        @settings(
            max_examples=40 if way == "in process" else 15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(steps, steps)
        def check(one: list[Step], two: list[Step]) -> None:
            nonlocal number
            number += 1

            async def example() -> None:
                if way == "in process":
                    become(Caller(f"tenant {number}"))
                else:
                    await state.documents.delete(ALL)
                await run_history(state, one, two)

            runner.run(example())

        try:
            check()
        finally:
            runner.run(world.__aexit__(None, None, None))
