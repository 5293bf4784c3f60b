"""Random histories on two clients, checked against a simple model of the registry.

hypothesis chooses the steps; each is made by one of two clients (one in process, one over gRPC) and
its outcome, with every error's reason, is what the model says.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from storage_checks import make_gguf, upload
from storage_world import World, storage_world

from llmos.lib.errors import LLMOSError
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Draft, File, Lineage
from llmos.servers.storage.registry.model import AliasMove

T = TypeVar("T")
EXAMPLES = int(os.environ.get("LLMOS_TEST_HISTORIES", "3"))
CONTENTS = [make_gguf(seed) for seed in range(4)]

# A history that fails is printed as it is: making it shorter takes minutes with real servers.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

names = st.sampled_from(["a", "b"])
contents = st.integers(0, len(CONTENTS) - 1)
numbers = st.integers(1, 5)
aliases = st.sampled_from(["prod", "stage"])
clients = st.sampled_from([0, 1])
guesses = st.sampled_from(["now", "none", "wrong", "any"])


class Histories(RuleBasedStateMachine):
    """The real registry beside a model of it: what is there, as dicts and lists."""

    template: Path

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.clients: list[World] = []
        self.last: dict[str, int] = {}
        self.versions: dict[tuple[str, int], tuple[int, tuple[str, ...]]] = {}
        self.tags: dict[tuple[str, int], dict[str, str]] = {}
        self.aliases: dict[tuple[str, str], tuple[int, int]] = {}  # version, revision
        self.back: dict[int, tuple[int, int]] = {}  # revision: (version, revision to go back to)
        self.moves: list[AliasMove] = []
        self.leases: dict[str, tuple[str, int]] = {}
        self.run(self._open())

    async def _open(self) -> None:
        folder = Path(self.stack.enter_context(TemporaryDirectory(prefix="llmos-")))
        (folder / "storage").mkdir()
        shutil.copy(self.template, folder / "storage")
        store = LocalStorage(folder / "storage")
        self.stack.callback(store.close)
        for way in ("in process", "gRPC"):
            world = await self.stack.enter_async_context(storage_world(way, folder, store))
            self.clients.append(world)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def outcome(self, work: Coroutine[Any, Any, T]) -> T | str:
        """Return the result, or the reason of the error."""
        try:
            return self.run(work)
        except LLMOSError as exc:
            return exc.reason

    def missing(self, name: str, number: int) -> str:
        """Return the reason why there is no such version; "" when there is."""
        if (name, number) in self.versions:
            return ""
        known = any(n == name for n, _ in self.versions)
        return "NO_SUCH_VERSION" if known else "NO_SUCH_MODEL"

    @rule(client=clients, name=names, content=contents, parent=st.one_of(st.none(), numbers))
    def create(self, client: int, name: str, content: int, parent: int | None) -> None:
        parents = (f"a@{parent}",) if parent else ()
        # Each time: it went with the last version that had it.
        digest = self.run(upload(self.clients[client].storage, CONTENTS[content]))
        file = File("model.gguf", digest, 0)
        draft = Draft(name, (file,), lineage=Lineage(parents=parents))
        made = self.run(self.clients[client].storage.create_version(draft)).version
        same = [k for k, (c, _) in self.versions.items() if k[0] == name and c == content]
        if same:
            assert (made.name, made.version) == same[0]
            return
        self.last[name] = self.last.get(name, 0) + 1
        assert (made.name, made.version) == (name, self.last[name])
        self.versions[name, made.version] = content, parents
        self.tags[name, made.version] = {}

    @rule(client=clients, name=names, number=numbers, force=st.booleans())
    def delete(self, client: int, name: str, number: int, force: bool) -> None:
        key, ref = (name, number), f"{name}@{number}"
        got = self.outcome(self.clients[client].storage.delete_version(ref, force))
        if reason := self.missing(name, number):
            assert got == reason
            return
        pointing = sorted(k for k, (v, _) in self.aliases.items() if (k[0], v) == key)
        needed = pointing or any(ref in parents for _, parents in self.versions.values())
        if key in self.leases.values() or (needed and not force):
            assert got == "IN_USE"
            return
        assert isinstance(got, int)
        for alias in pointing:
            self.moved(alias, 0, 0)
        del self.versions[key], self.tags[key]

    def moved(self, alias: tuple[str, str], version: int, back: int) -> None:
        """Note a move in the model."""
        revision = len(self.moves) + 1
        previous = self.aliases.pop(alias, (0, 0))[0]
        self.moves.append(AliasMove(revision, *alias, version=version, previous_version=previous))
        if version:
            self.aliases[alias] = version, revision
            self.back[revision] = version, back

    @rule(client=clients, name=names, alias=aliases, number=numbers, guess=guesses)
    def point(self, client: int, name: str, alias: str, number: int, guess: str) -> None:
        now, revision = self.aliases.get((name, alias), (0, 0))
        expected = {"now": revision, "none": 0, "wrong": 10**6, "any": None}[guess]
        got = self.outcome(self.clients[client].aliases.set_alias(name, alias, number, expected))
        if reason := self.missing(name, number):
            assert got == reason
        elif expected not in (None, revision):
            retry = now == number and self.replaced(name, alias) == expected
            assert (got == "ALIAS_MOVED") != retry
        elif now == number:
            assert isinstance(got, tuple) and got[0].revision == revision
        else:
            self.moved((name, alias), number, revision)
            assert isinstance(got, tuple)
            assert (got[0].version, got[0].revision, got[1]) == (number, len(self.moves), now)

    def replaced(self, name: str, alias: str) -> int | None:
        """Return the revision that the alias's newest move replaced, when that was a `set`."""
        own = [m for m in self.moves if (m.model, m.alias) == (name, alias)]
        newest = own[-1]
        if self.back[newest.revision][1] != (own[-2].revision if newest.previous_version else 0):
            return None  # a rollback goes further back
        return own[-2].revision if newest.previous_version else 0

    @rule(client=clients, name=names, alias=aliases)
    def rollback(self, client: int, name: str, alias: str) -> None:
        now, revision = self.aliases.get((name, alias), (0, 0))
        got = self.outcome(self.clients[client].aliases.rollback_alias(name, alias, revision))
        if not any(n == name for n, _ in self.versions):
            assert got == "NO_SUCH_MODEL"
        elif not now:
            assert got == "NO_SUCH_ALIAS"
        else:
            before = self.back[revision][1]
            target, further = self.back.get(before, (0, 0))
            if not before or (name, target) not in self.versions:
                assert got == "NOTHING_BEFORE"
                return
            self.moved((name, alias), target, further)
            assert isinstance(got, tuple) and (got[0].version, got[1]) == (target, now)

    @rule(client=clients, name=names, alias=aliases)
    def remove(self, client: int, name: str, alias: str) -> None:
        there = (name, alias) in self.aliases
        assert self.outcome(self.clients[client].aliases.delete_alias(name, alias)) == there
        if there:
            self.moved((name, alias), 0, 0)

    @rule(client=clients, name=names, number=numbers, key=st.sampled_from(["k", "l"]))
    def tag(self, client: int, name: str, number: int, key: str) -> None:
        there = self.tags.get((name, number), {})
        added, removed = ({}, [key]) if key in there else ({key: "v"}, [])
        ref = f"{name}@{number}"
        got = self.outcome(self.clients[client].storage.set_tags(ref, added, removed))
        if reason := self.missing(name, number):
            assert got == reason
            return
        changed = {k: v for k, v in (there | added).items() if k not in removed}
        self.tags[name, number] = changed
        assert got == changed

    @rule(client=clients, name=names, number=numbers)
    def lease(self, client: int, name: str, number: int) -> None:
        held = [id for id, version in self.leases.items() if version == (name, number)]
        leases = self.clients[client].leases
        if held:
            assert self.run(leases.release_lease(held[0]))
            del self.leases[held[0]]
            return
        got = self.outcome(leases.acquire_lease(f"{name}@{number}", "test", 3600))
        if reason := self.missing(name, number):
            assert got == reason
        else:
            assert not isinstance(got, str)
            self.leases[got.id] = name, number

    @invariant()
    def both_clients_see_the_model(self) -> None:
        if not getattr(self, "clients", None):
            return
        order = sorted(self.versions, key=lambda key: (key[0], -key[1]))
        for world in self.clients:
            page = self.run(world.storage.list_versions("", 0, ""))
            assert [(v.name, v.version) for v in page.versions] == order
            assert [dict(v.tags) for v in page.versions] == [self.tags[key] for key in order]
            listed = self.run(world.aliases.list_aliases("", 0, "")).aliases
            assert {(a.model, a.alias): (a.version, a.revision) for a in listed} == self.aliases
            for (name, alias), (version, _) in self.aliases.items():
                found = self.run(world.storage.get_version(f"{name}@{alias}"))
                assert found.version == version and alias in found.aliases

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        if self.clients:
            self.run(self._the_watch_tells_all())
        self.run(self.stack.aclose())
        self.loop.close()

    async def _the_watch_tells_all(self) -> None:
        for world in self.clients:
            watch = world.aliases.watch_aliases("", "", 0)
            seen = [await anext(watch) for _ in range(len(self.moves) + 1)][1:]
            await watch.aclose()
            about = [(m.revision, m.model, m.alias, m.version, m.previous_version) for m in seen]
            assert about == [
                (m.revision, m.model, m.alias, m.version, m.previous_version) for m in self.moves
            ]


def test_random_histories(sqlite_template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Histories, "template", sqlite_template, raising=False)
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            phases=PHASES,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
