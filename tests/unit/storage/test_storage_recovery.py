"""What a start finds and clears, what is collected when, and what disk errors mean."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from model_files import tiny_gguf

from llmos.lib.errors import DataLoss, FailedPrecondition, LLMOSError, ResourceExhausted
from llmos.servers.storage.disk import require_room, writing
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.model import Draft, File


async def one(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def upload(store: LocalStorage, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    await store.write_blob(digest, one(data))
    return digest


async def test_start_clears_leftovers_and_keeps_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "storage"
    store = LocalStorage(folder)
    kept = await upload(store, b"kept")
    lost = await upload(store, b"lost")
    store.close()
    (folder / "tmp" / "abc").mkdir()
    (folder / "tmp" / "abc" / "0").write_bytes(b"half")
    orphan = folder / "blobs" / "ff" / ("f" * 64)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"no row")
    (folder / "blobs" / lost[:2] / lost).unlink()
    store = LocalStorage(folder)
    try:
        assert await store.stat_blobs([kept, lost, "f" * 64]) == [4, -1, -1]
        assert not orphan.exists() and not list((folder / "tmp").iterdir())
    finally:
        store.close()


async def test_damaged_blob_is_told_and_healed_by_nothing(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "storage")
    try:
        digest = await upload(store, tiny_gguf(tmp_path / "a.gguf").read_bytes())
        version = await store.create_version(Draft("m", (File("model.gguf", digest, 0),)))
        path = version.version.files[0].path
        assert path is not None
        path.chmod(0o644)
        os.truncate(path, 10)
        with pytest.raises(DataLoss) as caught:
            async for _ in store.read_blob(digest, 0, 0):
                pass
        assert caught.value.reason == "BLOB_DAMAGED"
    finally:
        store.close()
    LocalStorage(tmp_path / "storage").close()  # and it still starts


async def test_uploads_are_collected_after_their_grace(tmp_path: Path) -> None:
    folder = tmp_path / "storage"
    store = LocalStorage(folder)
    gguf = await upload(store, tiny_gguf(tmp_path / "a.gguf").read_bytes())
    await store.create_version(Draft("m", (File("model.gguf", gguf, 0),)))
    abandoned = await upload(store, b"abandoned")
    store.close()
    store = LocalStorage(folder)
    assert await store.stat_blobs([abandoned]) == [9]
    store.close()
    store = LocalStorage(folder, blob_grace_s=-1)
    try:
        assert (await store.stat_blobs([abandoned, gguf]))[0] == -1
        assert (await store.get_version("m")).files[0].sha256 == gguf
        assert not (folder / "blobs" / abandoned[:2] / abandoned).exists()
    finally:
        store.close()


async def test_a_failing_registration_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStorage(tmp_path / "storage")
    try:
        with sqlite3.connect(tmp_path / "storage" / "registry.db") as sql:
            sql.execute(
                "CREATE TRIGGER fail BEFORE INSERT ON versions BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        sql.close()
        with pytest.raises(LLMOSError):
            async for _ in store.import_model(str(tiny_gguf(tmp_path / "a.gguf")), ""):
                pass
        assert [p for p in (tmp_path / "storage/blobs").glob("*/*")] == []
        assert list((tmp_path / "storage/tmp").iterdir()) == []
    finally:
        store.close()


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "storage")
    try:
        with pytest.raises(FailedPrecondition) as caught:
            LocalStorage(tmp_path / "storage")
        assert caught.value.reason == "STATE_IN_USE"
    finally:
        store.close()
    LocalStorage(tmp_path / "storage").close()


def test_damaged_registry_and_newer_schema(tmp_path: Path) -> None:
    LocalStorage(tmp_path / "a").close()
    (tmp_path / "a" / "registry.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(DataLoss) as damaged:
        LocalStorage(tmp_path / "a")
    assert damaged.value.reason == "REGISTRY_DAMAGED"
    LocalStorage(tmp_path / "b").close()
    with sqlite3.connect(tmp_path / "b" / "registry.db") as sql:
        sql.execute("PRAGMA user_version = 99")
    sql.close()
    with pytest.raises(FailedPrecondition) as newer:
        LocalStorage(tmp_path / "b")
    assert newer.value.reason == "NEWER_STATE"


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition) as caught:
        LocalStorage(tmp_path / "file" / "storage")
    assert caught.value.reason == "READ_ONLY"


@pytest.mark.parametrize(
    ("number", "error", "reason"),
    [
        (errno.ENOSPC, ResourceExhausted, "DISK_FULL"),
        (errno.EDQUOT, ResourceExhausted, "DISK_FULL"),
        (errno.EFBIG, ResourceExhausted, "DISK_FULL"),
        (errno.EROFS, FailedPrecondition, "READ_ONLY"),
        (errno.EACCES, FailedPrecondition, "READ_ONLY"),
    ],
)
def test_what_disk_errors_mean(
    tmp_path: Path, number: int, error: type[LLMOSError], reason: str
) -> None:
    with pytest.raises(error) as caught, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.reason == reason


def test_room_is_asked_for_first(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(ResourceExhausted, match="bytes are needed"):
        require_room(tmp_path, free + 1)
