"""What models and uploads cost their tenant, and what it gets back."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from model_files import tiny_gguf
from storage_checks import chunks, leftovers, take

from llmos.lib.errors import ResourceExhausted
from llmos.servers.storage.caller import Caller, become, restore
from llmos.servers.storage.db.quota import Limits
from llmos.servers.storage.ledger import AuditLog, QuotaBook
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Draft, File


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStorage]:
    local = LocalStorage(tmp_path / "storage")
    try:
        yield local
    finally:
        local.close()


async def test_versions_cost_their_bytes_and_give_them_back(
    store: LocalStorage, tmp_path: Path
) -> None:
    book, source = QuotaBook(store.database), tiny_gguf(tmp_path / "a.gguf")
    size = source.stat().st_size
    await take(store, source, "one")
    await take(store, source, "two")  # the same bytes: logical use counts twice
    await take(store, source, "two")  # existed already: costs nothing
    assert (await book.get()).used.bytes == 2 * size
    assert (await book.get()).used.items == 2
    await book.set("*", Limits(bytes=2 * size))
    with pytest.raises(ResourceExhausted) as caught:
        await take(store, source, "three")
    assert caught.value.reason == "QUOTA_EXCEEDED"
    assert caught.value.details["used"] == str(2 * size)
    assert caught.value.details["limit"] == str(2 * size)
    await store.delete_version("one@1", False)
    assert (await book.get()).used.bytes == size
    await take(store, source, "three")
    as_other = become(Caller("other"))
    try:
        await take(store, source, "theirs")
        assert (await book.get()).used.bytes == size
    finally:
        restore(as_other)
    await store.delete_version("theirs@1", False)  # whoever deletes it: its owner gets it back
    assert {a.tenant: a.used.bytes for a in await book.list()} == {"*": 0, "local": 2 * size}


async def test_uploads_cost_until_a_version_has_them(store: LocalStorage, tmp_path: Path) -> None:
    book, data = QuotaBook(store.database), tiny_gguf(tmp_path / "a.gguf").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    await store.write_blob(digest, chunks(data))
    used = await book.get()
    assert {kind: u.bytes for kind, u in used.kinds.items()} == {"upload": len(data)}
    await store.create_version(Draft("m", (File("model.gguf", digest, 0),)))
    used = await book.get()
    assert {kind: u.bytes for kind, u in used.kinds.items()} == {"model": len(data)}
    await book.set("local", Limits(bytes=len(data) + 10))
    more = b"x" * 100_000
    with pytest.raises(ResourceExhausted):
        await store.write_blob(hashlib.sha256(more).hexdigest(), chunks(more))
    assert len(leftovers(tmp_path)) == 1  # the model's file
    assert (await book.get()).used.bytes == len(data)
    actions = [entry.action for entry in (await AuditLog(store.database).entries())[0]]
    assert actions.count("model.create") == 1 and actions.count("quota.set") == 1
    assert (await AuditLog(store.database).verify()).seq == len(actions)
