"""The contract of documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from state_world import SmallState

from llmos.lib.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    LLMOSError,
    NotFound,
    OutOfRange,
)
from llmos.servers.storage.state.base import Documents
from llmos.servers.storage.state.model import (
    Changes,
    Compare,
    Delete,
    Document,
    Keys,
    Operation,
    Put,
    Read,
    Relation,
    Target,
    Transaction,
)

ALL = Keys("", prefix=True)


async def keys_of(documents: Documents, prefix: str = "", revision: int = 0) -> list[str]:
    page = await documents.list(prefix, revision=revision, page_size=1000)
    return [document.key for document in page.documents]


async def wait_for_changes(watch: AsyncGenerator[Changes, None], count: int) -> list[Document]:
    found: list[Document] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found += (await anext(watch)).documents
    return found


async def test_put_get_replace_delete(state: SmallState) -> None:
    documents = state.documents
    made = await documents.put(Put("a/b", b"\x00one", "text/plain"))
    assert (made.version, made.create_revision) == (1, made.mod_revision)
    got, revision = await documents.get("a/b")
    assert (got.value, got.content_type, revision) == (b"\x00one", "text/plain", made.mod_revision)
    again = await documents.put(Put("a/b", b""))
    assert (again.version, again.create_revision) == (2, made.create_revision)
    assert again.mod_revision == made.mod_revision + 1
    assert (await documents.get("a/b", made.mod_revision))[0].value == b"\x00one"
    assert await documents.delete(Keys("a/b")) == (1, again.mod_revision + 1)
    assert await documents.delete(Keys("a/b")) == (0, again.mod_revision + 1)
    with pytest.raises(NotFound) as caught:
        await documents.get("a/b")
    assert caught.value.reason == "NO_SUCH_DOCUMENT"
    assert (await documents.get("a/b", again.mod_revision))[0].value == b""
    assert (await documents.put(Put("a/b", b"new"))).version == 1


async def test_compare_and_set(state: SmallState) -> None:
    documents = state.documents
    first = await documents.put(Put("k", b"1"), if_mod_revision=0)
    with pytest.raises(Aborted) as caught:
        await documents.put(Put("k", b"2"), if_mod_revision=0)
    assert caught.value.reason == "CONFLICT"
    assert caught.value.details["mod_revision"] == str(first.mod_revision)
    second = await documents.put(Put("k", b"2"), if_mod_revision=first.mod_revision)
    with pytest.raises(Aborted):
        await documents.delete(Keys("k"), if_mod_revision=first.mod_revision)
    assert (await documents.delete(Keys("k"), if_mod_revision=second.mod_revision))[0] == 1
    with pytest.raises(Aborted):
        await documents.put(Put("k", b"3"), if_mod_revision=second.mod_revision)


async def test_concurrent_increments_lose_nothing(state: SmallState) -> None:
    documents = state.documents

    async def add() -> None:
        while True:
            try:
                got, _ = await documents.get("n")
                value, at = int(got.value), got.mod_revision
            except NotFound:
                value, at = 0, 0
            try:
                await documents.put(Put("n", str(value + 1).encode()), if_mod_revision=at)
                return
            except Aborted:
                continue

    await asyncio.gather(*(add() for _ in range(8)))
    assert (await documents.get("n"))[0].value == b"8"


async def test_a_transaction_is_one_change(state: SmallState) -> None:
    documents = state.documents
    await documents.put(Put("old/1", b"x"))
    await documents.put(Put("old/2", b"y"))
    outcome = await documents.run(
        Transaction(
            [Put("new", b"z"), Delete(Keys("old/", prefix=True)), Read(ALL), Read(Keys("gone"))],
            [
                Compare("new", Target.VERSION, Relation.EQUAL, 0),
                Compare("old/1", Target.VALUE, Relation.EQUAL, b"x"),
                Compare("old/2", Target.MOD_REVISION, Relation.GREATER, 1),
                Compare("old/2", Target.CREATE_REVISION, Relation.NOT_EQUAL, 1),
                Compare("old/2", Target.VALUE, Relation.LESS, b"z"),
            ],
            [Put("never", b"")],
        )
    )
    assert outcome.succeeded
    put, deleted, read, nothing = outcome.results
    assert put.documents[0].mod_revision == outcome.revision
    assert deleted.deleted == 2
    assert [(d.key, d.value) for d in read.documents] == [("new", b"z")]
    assert not nothing.documents
    otherwise = await documents.run(
        Transaction(
            [Put("never", b"")],
            [Compare("gone", Target.VALUE, Relation.EQUAL, b"")],
            [Read(Keys("new"))],
        )
    )
    assert not otherwise.succeeded
    assert otherwise.results[0].documents[0].value == b"z"
    assert otherwise.revision == outcome.revision  # nothing changed
    assert await keys_of(documents) == ["new"]


async def test_a_transaction_that_fails_changes_nothing(state: SmallState) -> None:
    documents = state.documents
    before = (await documents.list()).revision
    cases: list[tuple[list[Operation], str]] = [
        ([Put("a", b"1"), Put("b", b"2", lease="none")], "NO_SUCH_LEASE"),
        ([Put("a", b"1"), Put("a", b"2")], "BAD_TRANSACTION"),
        ([Put("a/b", b"1"), Delete(Keys("a/", prefix=True))], "BAD_TRANSACTION"),
        ([Put("a", b"1"), Put("", b"2")], "BAD_KEY"),
        ([Put("a", b"1"), Put("b", b"x" * ((1 << 20) + 1))], "TOO_LARGE"),
        ([Put(str(i), b"") for i in range(129)], "BAD_TRANSACTION"),
    ]
    for operations, reason in cases:
        with pytest.raises(LLMOSError) as caught:
            await documents.run(Transaction(operations))
        assert caught.value.reason == reason
    assert await keys_of(documents) == []
    assert (await documents.list()).revision == before


async def test_a_request_id_makes_retries_safe(state: SmallState) -> None:
    documents = state.documents
    first = await documents.put(Put("k", b"1"), if_mod_revision=0, request_id="r1")
    assert await documents.put(Put("k", b"1"), if_mod_revision=0, request_id="r1") == first
    with pytest.raises(InvalidArgument) as caught:
        await documents.put(Put("k", b"2"), if_mod_revision=0, request_id="r1")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    gone = await documents.delete(Keys("k"), request_id="r2")
    await documents.put(Put("k", b"again"))
    assert await documents.delete(Keys("k"), request_id="r2") == gone
    assert (await documents.get("k"))[0].value == b"again"
    transaction = Transaction([Read(Keys("k")), Put("n", b"\xff")], request_id="r3")
    assert await documents.run(transaction) == await documents.run(transaction)
    assert (await documents.get("n"))[0].version == 1


async def test_list_pages_show_one_revision(state: SmallState) -> None:
    documents = state.documents
    names = [f"p/{i:03}" for i in range(25)] + ["p", "p0", "q", "p/é", "p/\U0001f600", "P/1"]
    await documents.run(Transaction([Put(name, name.encode()) for name in names]))
    inside = sorted(name for name in names if name.startswith("p/"))
    page = await documents.list("p/", page_size=10)
    seen, first = [d.key for d in page.documents], page.revision
    await documents.delete(Keys("p/", prefix=True))
    await documents.put(Put("p/005", b"new"))
    while page.next_token:
        page = await documents.list("p/", page_size=10, page_token=page.next_token)
        assert page.revision == first
        assert all(d.value == d.key.encode() for d in page.documents)
        seen += [d.key for d in page.documents]
    assert seen == inside
    assert await keys_of(documents, "p/") == ["p/005"]
    assert await keys_of(documents, "p/", first) == inside
    only = await documents.list(keys_only=True)
    assert [d.key for d in only.documents] == sorted(["p/005", "p", "p0", "q", "P/1"])
    assert all(d.value == b"" for d in only.documents)
    for token, prefix in (("%%%", "p/"), ("W10=", "p/")):
        with pytest.raises(InvalidArgument) as caught:
            await documents.list(prefix, page_token=token)
        assert caught.value.reason == "BAD_PAGE"


async def test_a_page_of_large_documents_ends_early(state: SmallState) -> None:
    for number in range(6):
        await state.documents.put(Put(f"big/{number}", bytes(1 << 20)))
    page = await state.documents.list("big/")
    assert 1 <= len(page.documents) < 6
    rest = await state.documents.list("big/", page_token=page.next_token)
    assert len(page.documents) + len(rest.documents) == 6


async def test_watch_from_a_revision_has_no_gaps(state: SmallState) -> None:
    documents = state.documents
    first = await documents.put(Put("w/1", b"1"))
    await documents.put(Put("other", b""))
    await documents.run(Transaction([Put("w/2", b"2"), Put("w/3", b"3"), Delete(Keys("w/1"))]))
    async with aclosing(documents.watch(Keys("w/", True), first.mod_revision)) as watch:
        start = await anext(watch)
        assert not start.documents
        found = await wait_for_changes(watch, 4)
        assert [(d.key, d.value, d.version) for d in found] == [
            ("w/1", b"1", 1),
            ("w/2", b"2", 1),
            ("w/3", b"3", 1),
            ("w/1", b"", 0),
        ]
        await documents.put(Put("w/9", b"later"))
        assert (await wait_for_changes(watch, 1))[0].value == b"later"
    async with aclosing(documents.watch(Keys("w/9"))) as watch:
        start = await anext(watch)
        assert start.revision == (await documents.list()).revision
        await documents.put(Put("w/8", b""))
        await documents.put(Put("w/9", b"x"))
        assert [d.key for d in await wait_for_changes(watch, 1)] == ["w/9"]


async def test_compaction_is_told_and_spares_the_present(state: SmallState) -> None:
    documents = state.documents
    first = await documents.put(Put("c", b"1"))
    await documents.put(Put("c", b"2"))
    await documents.put(Put("d", b"3"))
    await documents.delete(Keys("d"))
    async with aclosing(documents.watch(Keys("quiet"))) as quiet:
        await anext(quiet)
        newest = await documents.compact()
        assert newest == (await documents.list()).revision
        assert await documents.compact(first.mod_revision) == newest  # never back
        await documents.put(Put("quiet", b"!"))
        assert (await wait_for_changes(quiet, 1))[0].value == b"!"
    assert (await documents.get("c"))[0].value == b"2"
    assert (await documents.get("c", newest))[0].value == b"2"
    with pytest.raises(OutOfRange) as caught:
        await documents.get("c", first.mod_revision)
    assert caught.value.reason == "COMPACTED"
    with pytest.raises(OutOfRange) as caught:
        async with aclosing(documents.watch(ALL, first.mod_revision)) as watch:
            await anext(watch)
    assert caught.value.reason == "COMPACTED"
    with pytest.raises(OutOfRange) as caught:
        await documents.get("c", newest + 100)
    assert caught.value.reason == "FUTURE_REVISION"
    with pytest.raises(OutOfRange):
        await documents.compact(newest + 100)


async def test_an_idle_watch_tells_its_revision(state: SmallState) -> None:
    async with aclosing(state.documents.watch(Keys("idle"))) as watch:
        await anext(watch)
        made = await state.documents.put(Put("other", b""))
        async with asyncio.timeout(20):
            while (beat := await anext(watch)).revision < made.mod_revision:
                assert not beat.documents


async def test_bad_keys(state: SmallState) -> None:
    for key in ("", "x" * 513, "x" * (1 << 20), "a\0b", "a\nb"):
        for call in (
            state.documents.get(key),
            state.documents.put(Put(key, b"")),
            state.locks.lock(key),
        ):
            with pytest.raises(InvalidArgument) as caught:
                await call
            assert caught.value.reason == "BAD_KEY"
            assert len(str(caught.value)) < 700


async def test_a_stopping_server_ends_watches_and_waits(state: SmallState) -> None:
    lease = await state.leases.grant(60_000)
    held = await state.locks.acquire("l", lease.id)
    waiting = asyncio.create_task(
        state.locks.acquire("l", lease.id, wait_ms=60_000, request_id="2")
    )
    async with aclosing(state.documents.watch(ALL)) as watch:
        await anext(watch)
        async with asyncio.timeout(20):
            while not (await state.locks.lock("l")).waiting:
                await asyncio.sleep(0.01)
        state.core.stop()
        for wait in (anext(watch), waiting):
            with pytest.raises(LLMOSError) as caught:
                async with asyncio.timeout(20):
                    await wait
            assert caught.value.reason == "STOPPING"
    lock = await state.locks.lock("l")
    assert lock.holder is not None and lock.holder.token == held
    assert len(lock.waiting) == 1  # the place is kept
    assert not isinstance(caught.value, FailedPrecondition)
