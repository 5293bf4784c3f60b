"""What tags, filters, pages, lineage, aliases and leases must do, on every way there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from storage_checks import make_gguf, upload
from storage_world import ALL_WAYS, World

from llmos.lib.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    LLMOSError,
    NotFound,
    OutOfRange,
    Unavailable,
)
from llmos.servers.storage.model import Draft, File, Filters, Format, Lineage, Metric, Task
from llmos.servers.storage.registry.model import AliasMove, MoveKind

WAYS = ALL_WAYS


async def make(world: World, name: str, seed: int = 0, **about: object) -> str:
    digest = await upload(world.storage, make_gguf(seed))
    draft = Draft(name, (File("model.gguf", digest, 0),))
    made = await world.storage.create_version(replace(draft, **about))  # type: ignore[arg-type]
    return made.version.ref


async def three(world: World) -> None:
    for seed in range(3):
        await make(world, "m", seed)


async def take(watch: AsyncGenerator[AliasMove, None], count: int) -> list[AliasMove]:
    async with asyncio.timeout(20):
        return [await anext(watch) for _ in range(count)]


def said(error: pytest.ExceptionInfo[LLMOSError]) -> str:
    assert len(error.value.message) < 600
    return error.value.reason


async def test_a_manifest_keeps_all_that_is_said(world: World) -> None:
    lineage = Lineage("a train run", ("base@1",), "job-7", "lora", ("mails@3",), "git:abc")
    metrics = (Metric("loss", 1.5), Metric("broken", float("nan"), "ms"))
    ref = await make(world, "m", lineage=lineage, metrics=metrics, tags={"team": "x", "a/b": ""})
    found = await world.storage.get_version(ref)
    assert (found.lineage, found.tags) == (lineage, {"a/b": "", "team": "x"})
    assert found.metrics[0] == metrics[0] and found.metrics[1].value != found.metrics[1].value
    bad: list[tuple[dict[str, object], str]] = [
        ({"lineage": Lineage(parents=("base",))}, "BAD_NAME"),
        ({"lineage": Lineage(datasets=("mails@prod",))}, "BAD_NAME"),
        ({"lineage": Lineage(parents=("p@1",) * 1001)}, "BAD_MANIFEST"),
        ({"lineage": Lineage(code="x" * 1_000_000)}, "BAD_MANIFEST"),
        ({"lineage": Lineage(source="nul\0")}, "BAD_MANIFEST"),
        ({"tags": {"-": "x"}}, "BAD_TAG"),
        ({"tags": {"k": "v" * 1_000_000}}, "BAD_TAG"),
        ({"tags": {f"k{i}": "" for i in range(65)}}, "BAD_TAG"),
        ({"request_id": "r" * 1_000_000}, "BAD_MANIFEST"),
    ]
    for about, reason in bad:
        with pytest.raises(InvalidArgument) as caught:
            await make(world, "m", 1, **about)
        assert said(caught) == reason


async def test_tags_change_and_nothing_else_does(world: World) -> None:
    ref = await make(world, "m", tags={"a": "1", "b": "2"})
    before = await world.storage.get_version(ref)
    there = await world.storage.set_tags(ref, {"b": "3", "c": "4"}, ["a", "absent"])
    assert there == {"b": "3", "c": "4"}
    assert await world.storage.get_version(ref) == replace(before, tags=there)
    for added, removed in [({"ä": ""}, []), ({}, ["x" * 1_000_000]), ({"k": "\0"}, [])]:
        with pytest.raises(InvalidArgument) as bad:
            await world.storage.set_tags(ref, added, removed)
        assert said(bad) == "BAD_TAG"
    with pytest.raises(InvalidArgument) as bad:
        await world.storage.set_tags(ref, {f"k{i}": "" for i in range(63)}, [])
    assert said(bad) == "BAD_TAG" and (await world.storage.get_version(ref)).tags == there
    with pytest.raises(InvalidArgument):
        await world.storage.set_tags("m", {"a": ""}, [])
    with pytest.raises(NotFound):
        await world.storage.set_tags("m@9", {"a": ""}, [])


async def test_filters_of_a_listing(world: World) -> None:
    await make(world, "alpha", 0, tags={"team": "x"})
    await make(world, "alpha", 1, tags={"team": "y", "ok": ""})
    await make(world, "Beta", 0, tags={"team": "y"})

    async def refs(name: str = "", **filters: Any) -> list[str]:
        chosen = Filters(**filters)
        page = await world.storage.list_versions(name, 0, "", chosen)
        return [version.ref for version in page.versions]

    assert await refs() == ["Beta@1", "alpha@2", "alpha@1"]
    assert await refs(search="ALP") == ["alpha@2", "alpha@1"]
    assert await refs(search="%") == await refs(search="_") == []
    assert await refs(tags={"team": "y"}) == ["Beta@1", "alpha@2"]
    assert await refs("alpha", tags={"team": ""}) == ["alpha@2", "alpha@1"]
    assert await refs(tags={"team": "y", "ok": ""}) == ["alpha@2"]
    assert len(await refs(task=Task.GENERATE, format=Format.GGUF)) == 3
    assert await refs(task=Task.EMBED) == await refs(format=Format.ONNX) == []
    bad_filters: list[tuple[dict[str, Any], str]] = [
        ({"search": "x" * 1_000_000}, "BAD_NAME"),
        ({"tags": {"": ""}}, "BAD_TAG"),
    ]
    for filters, reason in bad_filters:
        with pytest.raises(InvalidArgument) as bad:
            await refs(**filters)
        assert said(bad) == reason
    first = await world.storage.list_versions("", 1, "")
    with pytest.raises(InvalidArgument) as other:
        await world.storage.list_versions("", 1, first.next_token, Filters(search="a"))
    assert said(other) == "BAD_PAGE"


async def test_pages_skip_and_repeat_nothing_while_versions_come_and_go(world: World) -> None:
    digests = [await upload(world.storage, make_gguf(seed)) for seed in range(4)]

    async def add(name: str, number: int) -> None:
        draft = Draft(name, (File("model.gguf", digests[number], 0),))
        await world.storage.create_version(draft)

    for name in ("b", "d", "f"):
        for number in range(3):
            await add(name, number)
    always = {f"{name}@{n}" for name in "bdf" for n in (1, 2, 3)} - {"d@3"}
    seen: list[str] = []
    token = ""
    for turn in range(20):
        page = await world.storage.list_versions("", 2, token)
        seen += [version.ref for version in page.versions]
        if turn == 1:  # between b@1, d@3 and the rest
            await add("a", 0)
            await add("c", 0)
            await add("e", 0)
            await add("b", 3)
            await add("d", 3)
            await world.storage.delete_version("d@3", False)
        token = page.next_token
        if not token:
            break
    assert len(seen) == len(set(seen)) and always <= set(seen)


async def test_lineage_is_walked_both_ways(world: World) -> None:
    await make(world, "base", 0, lineage=Lineage("web"))
    await make(world, "tuned", 1, lineage=Lineage(parents=("base@1",), datasets=("mails@3",)))
    await make(world, "small", 2, lineage=Lineage(parents=("tuned@1", "base@1", "gone@4")))
    walk = await world.storage.lineage("small", False, 0)
    about = [(node.ref, node.depth, node.missing) for node in walk.nodes]
    assert about == [
        ("small@1", 0, False),
        ("tuned@1", 1, False),
        ("base@1", 1, False),
        ("gone@4", 1, True),
    ]
    assert walk.nodes[1].lineage.datasets == ("mails@3",) and not walk.truncated
    assert (walk.nodes[2].lineage.source, walk.nodes[2].format) == ("web", Format.GGUF)
    down = await world.storage.lineage("base@1", True, 0)
    assert [node.ref for node in down.nodes] == ["base@1", "small@1", "tuned@1"]
    one = await world.storage.lineage("small", False, 1)
    assert len(one.nodes) == 4 and not one.truncated
    chain = await world.storage.lineage("tuned", False, 1)
    assert [node.ref for node in chain.nodes] == ["tuned@1", "base@1"]
    for number in range(3, 6):
        await make(world, f"x{number}", number, lineage=Lineage(parents=(f"x{number - 1}@1",)))
    short = await world.storage.lineage("x5", False, 1)
    assert [node.ref for node in short.nodes] == ["x5@1", "x4@1"] and short.truncated
    with pytest.raises(NotFound):
        await world.storage.lineage("nothing", False, 0)


async def test_an_alias_moves_and_means_its_version(world: World) -> None:
    await three(world)
    made, before = await world.aliases.set_alias("m", "prod", 1)
    assert (made.version, before) == (1, 0)
    assert (await world.storage.get_version("m@prod")).ref == "m@1"
    assert (await world.storage.get_version("m@1")).aliases == ("prod",)
    assert [v.aliases for v in (await world.storage.list_versions("m", 0, "")).versions][-1] == (
        "prod",
    )
    assert (await world.storage.get_version("m")).ref == "m@3"  # a name alone is its newest
    again = await world.aliases.set_alias("m", "prod", 1)
    assert again == (made, 1)  # no move
    moved, before = await world.aliases.set_alias("m", "prod", 2, made.revision)
    assert (moved.version, before, moved.revision) == (2, 1, made.revision + 1)
    assert (await world.aliases.set_alias("m", "prod", 2, made.revision))[0] == moved  # a retry
    for expected in (made.revision, 0, 10**6):
        with pytest.raises(Aborted) as lost:
            await world.aliases.set_alias("m", "prod", 3, expected)
        assert said(lost) == "ALIAS_MOVED" and "version 2" in lost.value.message
    with pytest.raises(Aborted):
        await world.aliases.set_alias("m", "new", 3, 7)
    new, _ = await world.aliases.set_alias("m", "new", 3, 0)
    page = await world.aliases.list_aliases("m", 1, "")
    rest = await world.aliases.list_aliases("m", 1, page.next_token)
    assert [*page.aliases, *rest.aliases] == [new, moved] and not rest.next_token
    assert (await world.aliases.list_aliases("", 0, "")).aliases == [new, moved]
    with pytest.raises(NotFound, match="it has new, prod") as absent:
        await world.storage.get_version("m@stage")
    assert said(absent) == "NO_SUCH_ALIAS"
    for name, version, reason in [("m", 9, "NO_SUCH_VERSION"), ("n", 1, "NO_SUCH_MODEL")]:
        with pytest.raises(NotFound) as nothing:
            await world.aliases.set_alias(name, "prod", version)
        assert said(nothing) == reason


async def test_bad_aliases(world: World) -> None:
    for alias in ("", "1", "1a", "a b", "a@b", "ä", "a\0", "x" * 65, "x" * 1_000_000):
        for attempt in (
            world.aliases.set_alias("m", alias, 1),
            world.aliases.rollback_alias("m", alias, 1),
            world.aliases.delete_alias("m", alias),
            world.aliases.list_moves("m", alias, 0, ""),
            world.storage.get_version(f"m@{alias}/"),
        ):
            with pytest.raises(InvalidArgument) as bad:
                await attempt
            assert said(bad) == "BAD_NAME"


async def test_rollback_goes_back_step_by_step(world: World) -> None:
    await three(world)
    for version in (1, 2, 3):
        now, _ = await world.aliases.set_alias("m", "prod", version)
    back, before = await world.aliases.rollback_alias("m", "prod", now.revision)
    assert (back.version, before) == (2, 3)
    assert await world.aliases.rollback_alias("m", "prod", now.revision) == (back, 3)  # a retry
    first, _ = await world.aliases.rollback_alias("m", "prod", back.revision)
    assert first.version == 1
    with pytest.raises(FailedPrecondition) as none:
        await world.aliases.rollback_alias("m", "prod", first.revision)
    assert said(none) == "NOTHING_BEFORE"
    with pytest.raises(Aborted):
        await world.aliases.rollback_alias("m", "prod", now.revision)
    with pytest.raises(NotFound) as absent:
        await world.aliases.rollback_alias("m", "stage", 1)
    assert said(absent) == "NO_SUCH_ALIAS"
    page = await world.aliases.list_moves("m", "prod", 2, "")
    rest = await world.aliases.list_moves("m", "prod", 0, page.next_token)
    history = [(m.kind, m.version, m.previous_version) for m in (*page.moves, *rest.moves)]
    assert history == [
        (MoveKind.ROLLBACK, 1, 2),
        (MoveKind.ROLLBACK, 2, 3),
        (MoveKind.SET, 3, 2),
        (MoveKind.SET, 2, 1),
        (MoveKind.SET, 1, 0),
    ]
    after, _ = await world.aliases.set_alias("m", "prod", 3)
    await world.storage.delete_version("m@1", False)
    with pytest.raises(FailedPrecondition, match="version 1 before, which was deleted"):
        await world.aliases.rollback_alias("m", "prod", after.revision)


async def test_a_removed_alias_begins_anew(world: World) -> None:
    await three(world)
    now, _ = await world.aliases.set_alias("m", "prod", 1)
    with pytest.raises(Aborted):
        await world.aliases.delete_alias("m", "prod", now.revision + 1)
    assert await world.aliases.delete_alias("m", "prod", now.revision)
    assert not await world.aliases.delete_alias("m", "prod", now.revision)
    with pytest.raises(NotFound):
        await world.storage.get_version("m@prod")
    new, before = await world.aliases.set_alias("m", "prod", 2, 0)
    assert (before, new.revision) == (0, now.revision + 2)
    with pytest.raises(FailedPrecondition):
        await world.aliases.rollback_alias("m", "prod", new.revision)
    kinds = [m.kind for m in (await world.aliases.list_moves("m", "prod", 0, "")).moves]
    assert kinds == [MoveKind.SET, MoveKind.DELETE, MoveKind.SET]
    with pytest.raises(NotFound):
        await world.aliases.list_moves("m", "never", 0, "")


async def test_of_moves_at_once_exactly_one_wins(world: World) -> None:
    await three(world)
    start, _ = await world.aliases.set_alias("m", "prod", 1)

    async def attempt(number: int) -> bool:
        try:
            await world.aliases.set_alias("m", "prod", 2 + number % 2, start.revision)
        except Aborted as exc:
            assert exc.reason == "ALIAS_MOVED"
            return False
        return True

    won = await asyncio.gather(*(attempt(number) for number in range(8)))
    now = (await world.aliases.list_aliases("m", 0, "")).aliases[0]
    assert now.revision == start.revision + 1  # one move; who wanted the same has won as well
    assert [
        ok for ok, number in zip(won, range(8), strict=True) if 2 + number % 2 == now.version
    ] == [True] * 4
    assert sum(won) == 4


async def test_a_watch_sees_every_move_and_can_go_on(world: World) -> None:
    await three(world)
    await world.aliases.set_alias("m", "prod", 1)
    watch = world.aliases.watch_aliases("", "", None)
    assert (await take(watch, 1)) == [AliasMove(1)]
    await world.aliases.set_alias("m", "prod", 2)
    await world.aliases.set_alias("m", "stage", 3)
    seen = await take(watch, 2)
    assert [(m.revision, m.alias, m.version, m.actor) for m in seen] == [
        (2, "prod", 2, "local"),
        (3, "stage", 3, "local"),
    ]
    await watch.aclose()
    await world.aliases.delete_alias("m", "stage")
    resumed = world.aliases.watch_aliases("m", "stage", 2)
    assert [m.kind for m in await take(resumed, 3)] == [
        MoveKind.UNSPECIFIED,
        MoveKind.SET,
        MoveKind.DELETE,
    ]
    waiting = asyncio.create_task(anext(resumed))
    await world.aliases.set_alias("m", "prod", 3)  # not of this watch
    await world.aliases.set_alias("m", "stage", 1)
    assert (await asyncio.wait_for(waiting, 20)).revision == 6
    await resumed.aclose()
    everything = world.aliases.watch_aliases("", "", 0)
    assert [m.revision for m in await take(everything, 7)] == list(range(7))
    world.own_aliases.stop()
    with pytest.raises(Unavailable) as stopping:
        await asyncio.wait_for(anext(everything), 20)
    assert said(stopping) == "STOPPING"
    with pytest.raises(OutOfRange) as future:
        await anext(world.aliases.watch_aliases("", "", 7))
    assert said(future) == "BAD_REVISION"


async def test_what_is_needed_is_not_deleted(world: World) -> None:
    await make(world, "base")
    await make(world, "child", 1, lineage=Lineage(parents=("base@1",)))
    alias, _ = await world.aliases.set_alias("base", "prod", 1)
    lease = await world.leases.acquire_lease("base@prod", "worker 7", 60)
    with pytest.raises(FailedPrecondition) as needed:
        await world.storage.delete_version("base@1", False)
    assert said(needed) == "IN_USE"
    for words in ("'worker 7'", lease.id, "alias prod", "child@1"):
        assert words in needed.value.message
    assert needed.value.details["children"] == "child@1"
    assert needed.value.details["aliases"] == "prod"
    with pytest.raises(FailedPrecondition, match="worker 7"):
        await world.storage.delete_version("base@1", True)  # a lease holds against force
    assert (await world.aliases.list_aliases("base", 0, "")).aliases == [alias]
    assert await world.leases.release_lease(lease.id)
    assert not await world.leases.release_lease(lease.id)
    with pytest.raises(FailedPrecondition, match="alias prod means it; child@1 was made from it"):
        await world.storage.delete_version("base@1", False)
    assert await world.storage.delete_version("base@1", True) > 0
    assert (await world.aliases.list_aliases("base", 0, "")).aliases == []
    assert (await world.storage.get_version("child")).lineage.parents == ("base@1",)
    moves = (await world.aliases.list_moves("base", "prod", 0, "")).moves
    assert [m.kind for m in moves] == [MoveKind.DELETE, MoveKind.SET]


async def test_leases_are_taken_renewed_and_listed(world: World) -> None:
    await three(world)
    one = await world.leases.acquire_lease("m", "a", 60, "request")
    assert (one.model, one.version, one.ttl_s) == ("m", 3, 60)
    again = await world.leases.acquire_lease("m", "a", 60, "request")
    assert again.id == one.id
    two = await world.leases.acquire_lease("m@1", "b", 90)
    renewed = await world.leases.renew_lease(two.id)
    assert renewed.id == two.id and 89 < renewed.remaining_s <= 90
    assert [lease.id for lease in await world.leases.list_leases("m@1")] == [two.id]
    assert {lease.id for lease in await world.leases.list_leases("")} == {one.id, two.id}
    for ttl in (0, -1, float("nan"), float("inf"), 1e9):
        with pytest.raises(InvalidArgument) as bad:
            await world.leases.acquire_lease("m", "a", ttl)
        assert said(bad) == "BAD_TTL"
    with pytest.raises(InvalidArgument) as bad:
        await world.leases.acquire_lease("m", "x" * 1_000_000, 60)
    assert said(bad) == "BAD_NAME"
    for id in ("", "0" * 32, "x" * 1_000_000, "\0", one.id[:-1]):
        with pytest.raises(NotFound) as gone:
            await world.leases.renew_lease(id)
        assert said(gone) == "NO_SUCH_LEASE"
        assert not await world.leases.release_lease(id)
    for ref, reason in [
        ("m@9", "NO_SUCH_VERSION"),
        ("n", "NO_SUCH_MODEL"),
        ("m@x", "NO_SUCH_ALIAS"),
    ]:
        with pytest.raises(NotFound) as absent:
            await world.leases.acquire_lease(ref, "a", 60)
        assert said(absent) == reason
