"""The contract of uploads: they go on after anything, and what is committed is what was meant."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from storage_checks import content
from storage_world import ALL_WAYS, World

from llmos.lib.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LLMOSError,
    NotFound,
    OutOfRange,
)
from llmos.servers.storage.blobs.uploads_base import Part, Upload

WAYS = ALL_WAYS
PIECE = 50_000


async def parts(data: bytes, start: int = 0, *, damage_at: int = -1) -> AsyncIterator[Part]:
    for offset in range(start, len(data), PIECE):
        piece = data[offset : offset + PIECE]
        crc = zlib.crc32(piece) ^ (offset == damage_at)
        yield Part(offset, piece, crc)


async def begin(world: World, data: bytes) -> Upload:
    upload = await world.uploads.create(hashlib.sha256(data).hexdigest(), len(data))
    assert upload is not None
    return upload


async def test_upload_in_pieces(world: World) -> None:
    data = os.urandom(7 * PIECE + 3)
    upload = await begin(world, data)
    assert upload.offset == 0
    assert await world.uploads.append(upload.id, parts(data[: 3 * PIECE])) == 3 * PIECE
    assert await begin(world, data) == await world.uploads.get(upload.id)  # finds what was begun
    with pytest.raises(FailedPrecondition) as early:
        await world.uploads.commit(upload.id)
    assert early.value.reason == "UPLOAD_INCOMPLETE"
    assert [u.id for u in await world.uploads.list()] == [upload.id]
    # What is there already may come again.
    assert await world.uploads.append(upload.id, parts(data, PIECE)) == len(data)
    assert await world.uploads.commit(upload.id) == (upload.sha256, len(data))
    assert await world.uploads.commit(upload.id) == (upload.sha256, len(data))
    assert await content(world.storage, upload.sha256) == data
    assert await world.uploads.create(upload.sha256, len(data)) is None
    assert list(await world.uploads.list()) == []


async def test_what_is_wrong_is_told_and_the_rest_kept(world: World) -> None:
    data = os.urandom(4 * PIECE)
    upload = await begin(world, data)
    with pytest.raises(DataLoss) as damaged:
        await world.uploads.append(upload.id, parts(data, damage_at=2 * PIECE))
    assert damaged.value.reason == "CHUNK_DAMAGED"
    assert (await world.uploads.get(upload.id)).offset == 2 * PIECE
    with pytest.raises(Aborted) as gap:
        await world.uploads.append(upload.id, parts(data, 3 * PIECE))
    assert gap.value.reason == "WRONG_OFFSET"
    assert gap.value.details["offset"] == str(2 * PIECE)
    with pytest.raises(OutOfRange) as more:
        await world.uploads.append(upload.id, parts(data + b"x", 2 * PIECE))
    assert more.value.reason == "BAD_RANGE"
    assert await world.uploads.append(upload.id, parts(data, 2 * PIECE)) == len(data)
    await world.uploads.commit(upload.id)
    assert await content(world.storage, upload.sha256) == data


async def test_other_bytes_are_refused_and_gone(world: World, state_dir: Path) -> None:
    data = os.urandom(2 * PIECE)
    upload = await world.uploads.create("0" * 64, len(data))
    assert upload is not None
    await world.uploads.append(upload.id, parts(data))
    with pytest.raises(DataLoss) as caught:
        await world.uploads.commit(upload.id)
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert not list((state_dir / "storage/uploads").iterdir())
    for attempt in (world.uploads.commit(upload.id), world.uploads.get(upload.id)):
        with pytest.raises(NotFound) as gone:
            await attempt
        assert gone.value.reason == "NO_SUCH_UPLOAD"


async def test_abort_and_bad_names(world: World, state_dir: Path) -> None:
    data = os.urandom(PIECE)
    upload = await begin(world, data)
    await world.uploads.append(upload.id, parts(data[:10]))
    await world.uploads.abort(upload.id)
    await world.uploads.abort(upload.id)
    assert not list((state_dir / "storage/uploads").iterdir())
    for id in ("", "x", "../../etc/passwd", "0" * 64 + "-1", "a" * 100_000, "\x00"):
        with pytest.raises(LLMOSError) as caught:
            await world.uploads.append(id, parts(data))
        assert caught.value.reason == "NO_SUCH_UPLOAD" and len(caught.value.message) < 300
    with pytest.raises(InvalidArgument):
        await world.uploads.create("../x", 5)


async def test_empty_upload(world: World) -> None:
    upload = await begin(world, b"")
    assert await world.uploads.commit(upload.id) == (hashlib.sha256(b"").hexdigest(), 0)
