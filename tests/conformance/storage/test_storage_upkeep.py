"""The contract of upkeep: sound stores are found sound, damage is found, told and healed."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from model_files import tiny_safetensors
from storage_checks import content, take, upload
from storage_world import ALL_WAYS, World

from llmos.lib.errors import Aborted, DataLoss, FailedPrecondition, InvalidArgument
from llmos.servers.storage.blobs.uploads_base import Part
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.upkeep.base import Finding, Kind, Step, Summary
from llmos.servers.storage.upkeep.local import LocalMaintenance

WAYS = ALL_WAYS


async def fsck(
    world: World, repair: bool = False, quick: bool = False
) -> tuple[list[Finding], Summary]:
    steps = [step async for step in world.upkeep.fsck(repair, quick)]
    summary = steps[-1]
    assert isinstance(summary, Summary)
    found = [step for step in steps if isinstance(step, Finding)]
    assert summary.findings == len(found)
    return found, summary


def blob_file(state_dir: Path, digest: str) -> Path:
    return state_dir / "storage/blobs" / digest[:2] / digest


async def one(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_a_sound_store_is_sound(world: World, tmp_path: Path) -> None:
    await take(world.storage, tiny_safetensors(tmp_path / "a.safetensors", rows=5000))
    await upload(world.storage, b"")
    found, summary = await fsck(world)
    assert found == [] and summary.blobs == 2
    assert summary.checked_bytes == (tmp_path / "a.safetensors").stat().st_size
    assert (await world.upkeep.df()).scrubbed > 0  # it read everything


async def test_leftovers_go(world: World, state_dir: Path) -> None:
    digest = await upload(world.storage, b"kept")
    left = blob_file(state_dir, "f" * 64)
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"of a crash")
    found, _ = await fsck(world, quick=True)
    assert [(f.kind, f.subject, f.done) for f in found] == [(Kind.LEFTOVER, "f" * 64, "")]
    found, summary = await fsck(world, repair=True)
    assert found[0].done and summary.repaired == 1 and not left.exists()
    assert await content(world.storage, digest) == b"kept"
    assert (await fsck(world))[0] == []


async def test_damage_is_found_told_and_healed(
    world: World, state_dir: Path, tmp_path: Path
) -> None:
    source = tiny_safetensors(tmp_path / "a.safetensors", rows=3000)
    version = (await take(world.storage, source, "m")).version
    digest = version.files[0].sha256
    file = blob_file(state_dir, digest)
    file.chmod(0o600)
    with file.open("r+b") as damaged:
        damaged.seek(20_000)
        damaged.write(b"\xff\x00\xff\x00")
    assert (await fsck(world, quick=True))[0] == []  # its size is right
    found, _ = await fsck(world)
    assert [(f.kind, f.subject, f.harms) for f in found] == [(Kind.DAMAGED, digest, ("m@1",))]
    found, summary = await fsck(world, repair=True)
    assert summary.quarantined == 1 and "quarantine" in found[0].done
    assert not file.exists() and list((state_dir / "storage/quarantine").iterdir())
    space = await world.upkeep.df()
    assert space.damaged_blobs == 1 and space.quarantine_bytes == source.stat().st_size
    assert await world.storage.stat_blobs([digest]) == [-1]
    with pytest.raises(DataLoss) as caught:
        await content(world.storage, digest)
    assert caught.value.reason == "BLOB_DAMAGED"
    await take(world.storage, source, "m")  # the same bytes again heal it
    assert await content(world.storage, digest) == source.read_bytes()
    assert (await fsck(world))[0] == [] and (await world.upkeep.df()).damaged_blobs == 0


async def test_a_missing_file_is_told(world: World, state_dir: Path, tmp_path: Path) -> None:
    source = tiny_safetensors(tmp_path / "a.safetensors", rows=30)
    digest = (await take(world.storage, source, "m")).version.files[0].sha256
    blob_file(state_dir, digest).unlink()
    found, _ = await fsck(world, repair=True)
    assert [(f.kind, f.subject) for f in found] == [(Kind.MISSING, digest)]
    await world.storage.write_blob(digest, one(source.read_bytes()))
    assert (await fsck(world))[0] == []
    assert await content(world.storage, digest) == source.read_bytes()


async def test_scrub_quarantines(world: World, state_dir: Path) -> None:
    good, bad = await upload(world.storage, os.urandom(9000)), await upload(world.storage, b"bad")
    file = blob_file(state_dir, bad)
    file.chmod(0o600)
    file.write_bytes(b"bat")
    steps = [step async for step in world.upkeep.scrub(0, 0)]
    findings = [step for step in steps if isinstance(step, Finding)]
    assert [(f.kind, f.subject) for f in findings] == [(Kind.DAMAGED, bad)]
    done = [step.done_bytes for step in steps if isinstance(step, Step)]
    assert done == sorted(done) and done[-1] == 9003
    assert await world.storage.stat_blobs([good, bad]) == [9000, -1]
    assert [s async for s in world.upkeep.scrub(0, 3600)][-1] == Step("done", 0, 0)  # just done


async def test_collecting_spares_what_is_needed(world: World, tmp_path: Path) -> None:
    source = tiny_safetensors(tmp_path / "a.safetensors", rows=3000)
    digest = (await take(world.storage, source, "m")).version.files[0].sha256
    abandoned = await upload(world.storage, os.urandom(5000))
    assert (await world.upkeep.collect(None)).blobs == 0  # within its grace
    assert (await world.upkeep.df()).unused_bytes == 5000
    done = await world.upkeep.collect(0)
    assert (done.blobs, done.freed_bytes) == (1, 5000)
    assert await world.storage.stat_blobs([digest, abandoned]) == [source.stat().st_size, -1]
    for grace in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument) as caught:
            await world.upkeep.collect(grace)
        assert caught.value.reason == "BAD_GRACE"


async def test_df_counts(world: World, tmp_path: Path) -> None:
    source = tiny_safetensors(tmp_path / "a.safetensors", rows=3000)
    await take(world.storage, source, "one")
    await take(world.storage, source, "two")
    begun = await world.uploads.create("1" * 64, 1000)
    assert begun is not None

    async def part() -> AsyncIterator[Part]:
        yield Part(0, b"x" * 600)

    await world.uploads.append(begun.id, part())
    space = await world.upkeep.df()
    size = source.stat().st_size
    assert (space.blobs, space.blob_bytes, space.stored_bytes) == (1, size, size)
    assert (space.upload_bytes, space.unused_bytes, space.cache_bytes) == (600, 0, 0)
    assert 0 < space.free_bytes < space.disk_bytes and not space.encrypted


async def saved(world: World, path: Path) -> Path:
    with path.open("wb") as file:
        async for step in world.upkeep.backup():
            if isinstance(step, bytes):
                file.write(step)
    return path


async def pieces(path: Path, end: int | None = None) -> AsyncIterator[bytes]:
    data = path.read_bytes()[:end]
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


async def test_backup_and_restore(world: World, tmp_path: Path) -> None:
    sources = [
        tiny_safetensors(tmp_path / f"{i}.safetensors", seed=i, rows=2000 * i) for i in (1, 2)
    ]
    for source in sources:
        await take(world.storage, source)
    loose = await upload(world.storage, b"no version has it")
    path = await saved(world, tmp_path / "backup.tar")
    assert tarfile.is_tarfile(path)
    with pytest.raises(FailedPrecondition) as full:
        await world.upkeep.restore(pieces(path))
    assert full.value.reason == "NOT_EMPTY"
    with TemporaryDirectory(prefix="llmos-") as folder:
        store = LocalStorage(Path(folder) / "storage")
        upkeep = LocalMaintenance(Path(folder) / "storage", store.blobs, store.uploads)
        try:
            for end in (0, 100, 5000, -1600, -20_000):
                with pytest.raises(DataLoss) as cut:
                    await upkeep.restore(pieces(path, end))
                assert cut.value.reason == "BAD_BACKUP", end
            spoiled = tmp_path / "spoiled.tar"
            data = bytearray(path.read_bytes())
            data[data.index(sources[1].read_bytes()[-500:])] ^= 1
            spoiled.write_bytes(data)
            with pytest.raises(DataLoss):
                await upkeep.restore(pieces(spoiled))
            assert not list((Path(folder) / "storage/blobs").glob("*/*"))
            done = await upkeep.restore(pieces(path))
            assert done.blobs == 3 and done.made > 0
            assert await content(store, loose) == b"no version has it"
            for i in (1, 2):
                file = (await store.get_version(str(i))).files[0]
                assert file.path is not None
                digest = hashlib.sha256(sources[i - 1].read_bytes()).hexdigest()
                assert hashlib.sha256(file.path.read_bytes()).hexdigest() == digest == file.sha256
            steps = [step async for step in upkeep.fsck(False, False)]
            assert [s for s in steps if isinstance(s, Finding)] == []
        finally:
            store.close()


async def test_one_at_a_time(world: World, tmp_path: Path) -> None:
    await upload(world.storage, os.urandom(3 << 20))
    scrub = world.upkeep.scrub(1 << 20, 0)
    await anext(scrub)
    with pytest.raises(Aborted) as busy:
        await fsck(world)
    assert busy.value.reason == "BUSY"
    await scrub.aclose()


async def test_rekey_needs_a_key(world: World) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        async for _ in world.upkeep.rekey():
            pass
    assert caught.value.reason == "KEY_NEEDED"
