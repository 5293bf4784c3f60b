"""The storage contract: blobs, uploads, deletes, what is cancelled leaves nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from model_files import sparse_safetensors, tiny_gguf
from storage_checks import chunks, content, leftovers, take, until_clean
from storage_world import FOUR_WAYS

from llmos.lib.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    OutOfRange,
)
from llmos.servers.storage.base import Storage
from llmos.servers.storage.model import (
    Progress,
)

WAYS = FOUR_WAYS


async def test_delete_frees_only_what_nobody_else_has(storage: Storage, tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf")
    size = source.stat().st_size
    digest = (await take(storage, source, "one")).version.files[0].sha256
    await take(storage, source, "two")
    assert await storage.delete_version("one@1", False) == 0
    assert await storage.stat_blobs([digest]) == [size]
    assert await storage.delete_version("two@1", False) == size
    assert await storage.stat_blobs([digest]) == [-1]
    with pytest.raises(NotFound):
        await storage.delete_version("two@1", False)
    assert (await take(storage, source, "one")).version.ref == "one@2"  # numbers are not reused


async def test_blobs_roundtrip_and_ranges(storage: Storage) -> None:
    data = os.urandom(700_001)
    digest = hashlib.sha256(data).hexdigest()
    assert await storage.write_blob(digest, chunks(data)) == (len(data), False)
    assert await storage.write_blob(digest, chunks(data)) == (len(data), True)
    assert await content(storage, digest) == data
    assert await content(storage, digest, 5, 300_000) == data[5:300_005]
    assert await content(storage, digest, len(data)) == b""
    empty = hashlib.sha256(b"").hexdigest()
    assert await storage.write_blob(empty, chunks(b"")) == (0, False)
    assert await storage.stat_blobs([digest, "0" * 64, empty]) == [len(data), -1, 0]
    async for piece in storage.read_blob(digest, 0, 0):
        assert len(piece) <= 2 << 20
    for offset, length in [(len(data) + 1, 0), (0, len(data) + 1), (1 << 63, 1), (5, 1 << 63)]:
        with pytest.raises(OutOfRange) as caught:
            await content(storage, digest, offset, length)
        assert caught.value.reason == "BAD_RANGE"
    with pytest.raises(NotFound) as missing:
        await content(storage, "0" * 64)
    assert missing.value.reason == "NO_SUCH_BLOB"


@pytest.mark.parametrize("digest", ["", "abc", "A" * 64, "../" * 21 + "x", "0" * 1_000_000])
async def test_bad_digests(storage: Storage, digest: str) -> None:
    for attempt in (
        storage.write_blob(digest, chunks(b"x")),
        content(storage, digest),
        storage.stat_blobs([digest]),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await attempt
        assert caught.value.reason == "BAD_DIGEST" and len(caught.value.message) < 300


async def test_wrong_upload_keeps_nothing(storage: Storage, state_dir: Path) -> None:
    data = os.urandom(300_000)
    digest = hashlib.sha256(data).hexdigest()
    for sent in (data[:-1], data + b"x", b""):
        with pytest.raises(DataLoss) as caught:
            await storage.write_blob(digest, chunks(sent))
        assert caught.value.reason == "DIGEST_MISMATCH"
    assert await storage.stat_blobs([digest]) == [-1]
    assert leftovers(state_dir) == []


async def test_cancelled_upload_keeps_nothing(storage: Storage, state_dir: Path) -> None:
    async def stalls() -> AsyncIterator[bytes]:
        yield os.urandom(100_000)
        await asyncio.sleep(60)

    upload = asyncio.create_task(storage.write_blob("0" * 64, stalls()))
    while not leftovers(state_dir):
        await asyncio.sleep(0.005)
    upload.cancel()
    await asyncio.wait([upload])
    await until_clean(state_dir)
    assert await storage.stat_blobs(["0" * 64]) == [-1]


async def test_cancelled_import_leaves_nothing(
    storage: Storage, tmp_path: Path, state_dir: Path
) -> None:
    source = sparse_safetensors(tmp_path / "big.safetensors", 1 << 30)
    steps = storage.import_model(str(source), "big")
    async for step in steps:
        assert isinstance(step, Progress)
        if step.stage.startswith("reading"):
            break
    await steps.aclose()
    await until_clean(state_dir)
    with pytest.raises(NotFound):
        await storage.get_version("big")


async def test_progress_only_grows(storage: Storage, tmp_path: Path) -> None:
    source = sparse_safetensors(tmp_path / "big.safetensors", 64 << 20)
    done = 0
    async for step in storage.import_model(str(source), "big"):
        if isinstance(step, Progress):
            assert step.done_bytes >= done and step.done_bytes <= source.stat().st_size
            done = step.done_bytes
        else:
            assert not step.existed
    assert await storage.delete_version("big@1", False) == source.stat().st_size


async def test_many_at_once(storage: Storage, tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf")
    data = os.urandom(200_000)
    digest = hashlib.sha256(data).hexdigest()
    imports = [take(storage, source, "same") for _ in range(6)]
    imports += [take(storage, source, f"n{i}") for i in range(6)]
    writes = [storage.write_blob(digest, chunks(data)) for _ in range(6)]
    made, written = await asyncio.gather(asyncio.gather(*imports), asyncio.gather(*writes))
    assert {m.version.ref for m in made} == {"same@1", *(f"n{i}@1" for i in range(6))}
    assert sum(not m.existed for m in made) == 7
    assert {size for size, _ in written} == {len(data)}
    deletes = [storage.delete_version(f"n{i}@1", False) for i in range(6)]
    freed = await asyncio.gather(*deletes, take(storage, source, "last"))
    assert list(freed[:6]) == [0] * 6
    assert await content(storage, made[0].version.files[0].sha256) == source.read_bytes()
