"""An encrypted store: nothing plain on the disk, keys are needed and change, restarts go on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from model_files import tiny_safetensors
from storage_checks import content, take, upload

from llmos.lib.errors import DataLoss, FailedPrecondition, LLMOSError
from llmos.servers.storage.blobs.uploads_base import Part
from llmos.servers.storage.crypt.keys import KeyRing
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.upkeep.base import Finding, Kind, Rekeyed
from llmos.servers.storage.upkeep.local import LocalMaintenance

OLD, NEW = os.urandom(32), os.urandom(32)


def opened(folder: Path, *keys: bytes) -> LocalStorage:
    ring = KeyRing(list(keys)) if keys else None
    return LocalStorage(folder / "storage", keys=ring, cache_dir=folder / "copies")


def upkeep(folder: Path, store: LocalStorage) -> LocalMaintenance:
    return LocalMaintenance(folder / "storage", store.blobs, store.uploads)


async def parts(data: bytes, start: int = 0, end: int | None = None) -> AsyncIterator[Part]:
    for offset in range(start, len(data) if end is None else end, 30_000):
        yield Part(offset, data[offset : offset + 30_000])


async def findings(folder: Path, store: LocalStorage) -> list[Finding]:
    steps = upkeep(folder, store).fsck(False, False)
    return [step async for step in steps if isinstance(step, Finding)]


def on_disk(folder: Path) -> bytes:
    files = (p for p in (folder / "storage").rglob("*") if p.is_file() and p.name != "lock")
    return b"".join(file.read_bytes() for file in files)


async def test_nothing_plain_is_on_the_disk(tmp_path: Path) -> None:
    store = opened(tmp_path, OLD)
    try:
        source = tiny_safetensors(tmp_path / "m.safetensors", rows=3000)
        version = (await take(store, source)).version
        digest = await upload(store, data := os.urandom(200_000))
        begun = await store.uploads.create("0" * 64, 200_000)
        assert begun is not None
        await store.uploads.append(begun.id, parts(data, 0, 150_000))
        disk = on_disk(tmp_path)
        for plain in (source.read_bytes(), data):
            for at in (0, 70_000, 120_000):
                assert plain[at : at + 32] not in disk
        path = (await store.get_version(version.ref)).files[0].path
        assert path is not None and path.parent == tmp_path / "copies"
        assert path.stat().st_mode & 0o777 == 0o400 and path.read_bytes() == source.read_bytes()
        assert await content(store, digest, 65_000, 2000) == data[65_000:67_000]
        assert await findings(tmp_path, store) == []
    finally:
        store.close()


async def test_the_key_is_needed_and_the_right_one(tmp_path: Path) -> None:
    opened(tmp_path, OLD).close()
    for keys, reason in (((), "KEY_NEEDED"), ((NEW,), "WRONG_KEY")):
        with pytest.raises(FailedPrecondition) as caught:
            opened(tmp_path, *keys)
        assert caught.value.reason == reason
    opened(tmp_path, NEW, OLD).close()


async def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    store = opened(tmp_path, OLD)
    try:
        digest = await upload(store, os.urandom(100_000))
        file = store.blobs.file(digest, sealed=True)
        file.chmod(0o600)
        with file.open("r+b") as damaged:
            damaged.seek(80_000)
            byte = damaged.read(1)
            damaged.seek(80_000)
            damaged.write(bytes([byte[0] ^ 1]))
        assert len(await content(store, digest, 0, 1000)) == 1000  # another chunk
        with pytest.raises(DataLoss) as caught:
            await content(store, digest)
        assert caught.value.reason == "BLOB_DAMAGED"
        assert [f.kind for f in await findings(tmp_path, store)] == [Kind.DAMAGED]
    finally:
        store.close()


@pytest.mark.parametrize("keys", [(), (OLD,)])
@pytest.mark.parametrize("end", [0, 30_000, 90_000, 240_000])
async def test_uploads_go_on_after_a_restart(
    tmp_path: Path, keys: tuple[bytes, ...], end: int
) -> None:
    data = os.urandom(240_000)
    store = opened(tmp_path, *keys)
    begun = await store.uploads.create(hashlib.sha256(data).hexdigest(), len(data))
    assert begun is not None
    durable = await store.uploads.append(begun.id, parts(data, 0, end))
    assert end - 65_536 < durable <= end and (not keys or durable == end or durable % 65_536 == 0)
    assert durable == end or keys
    store.close()
    with (tmp_path / "storage/uploads" / begun.id).open("ab") as more:
        if end < len(data):
            more.write(b"never acknowledged")
    store = opened(tmp_path, *keys)
    try:
        assert (await store.uploads.get(begun.id)).offset == durable
        assert await store.uploads.append(begun.id, parts(data, durable)) == len(data)
        await store.uploads.commit(begun.id)
        assert await content(store, begun.sha256) == data
        assert await findings(tmp_path, store) == []
    finally:
        store.close()


async def rekey(folder: Path, *keys: bytes) -> Rekeyed:
    store = opened(folder, *keys)
    try:
        return [step async for step in upkeep(folder, store).rekey()][-1]
    finally:
        store.close()


async def test_keys_change_and_plain_files_get_sealed(tmp_path: Path) -> None:
    store = opened(tmp_path)
    source = tiny_safetensors(tmp_path / "m.safetensors", rows=3000)
    await take(store, source)
    small = await upload(store, b"small")
    store.close()
    done = await rekey(tmp_path, OLD)  # encryption is turned on for what is there
    assert (done.rewrapped, done.sealed) == (0, 2)
    assert source.read_bytes()[500:600] not in on_disk(tmp_path)
    done = await rekey(tmp_path, NEW, OLD)
    assert (done.rewrapped, done.sealed) == (2, 0)
    with pytest.raises(LLMOSError):
        opened(tmp_path, OLD)
    store = opened(tmp_path, NEW)
    try:
        assert await content(store, small) == b"small"
        assert (await store.get_version("m")).files[0].size == source.stat().st_size
        assert await findings(tmp_path, store) == []
    finally:
        store.close()


async def test_a_backup_stays_sealed_and_needs_its_key(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    store = opened(tmp_path / "a", OLD)
    data = os.urandom(100_000)
    digest = await upload(store, data)
    saved = b"".join(
        [s async for s in upkeep(tmp_path / "a", store).backup() if isinstance(s, bytes)]
    )
    store.close()
    assert data[1000:1032] not in saved

    async def pieces() -> AsyncIterator[bytes]:
        yield saved

    for name, key, reason in (("b", (), "KEY_NEEDED"), ("c", (NEW,), "WRONG_KEY")):
        (tmp_path / name).mkdir()
        other = opened(tmp_path / name, *key)
        with pytest.raises(FailedPrecondition) as caught:
            await upkeep(tmp_path / name, other).restore(pieces())
        assert caught.value.reason == reason
        other.close()
    (tmp_path / "d").mkdir()
    again = opened(tmp_path / "d", OLD)
    try:
        await upkeep(tmp_path / "d", again).restore(pieces())
        assert await content(again, digest) == data
        assert await findings(tmp_path / "d", again) == []
    finally:
        again.close()
