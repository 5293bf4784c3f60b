"""llmos-ctl storage, on a storage server that runs alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import ctl_forked
import pytest
from model_files import tiny_safetensors
from storage_process import start, storage

from llmos.lib.config import socket_address


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llmos-") as folder:
        yield Path(folder)


def ctl(state_dir: Path, *words: str, code: int = 0) -> str:
    address = socket_address(state_dir, "storage")
    done = ctl_forked.run("--address", address, *words, timeout=60)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def test_the_life_of_a_store(state_dir: Path, tmp_path: Path) -> None:
    source = tiny_safetensors(tmp_path / "m.safetensors", rows=4000)
    saved = tmp_path / "store.tar"
    with storage(state_dir / "a"):
        here = state_dir / "a"
        ctl(here, "model", "import", str(source))
        space = json.loads(ctl(here, "storage", "df", "-o", "json"))
        assert space["blob_bytes"] == space["stored_bytes"] == source.stat().st_size
        assert space["direct_address"] == socket_address(here, "blobs")
        assert "Sound: 1 blobs" in ctl(here, "storage", "fsck")
        assert "0 blobs" in ctl(here, "storage", "gc")
        assert "read, 0 blobs damaged" in ctl(here, "storage", "scrub")
        ctl(here, "storage", "backup", str(saved))
        assert "is there already" in ctl(here, "storage", "backup", str(saved), code=4)
        assert "has something in it" in ctl(here, "storage", "restore", str(saved), code=7)
        assert "KEY_NEEDED" in ctl(here, "storage", "rekey", "-o", "json", code=7)
        (blob,) = (here / "storage/blobs").glob("*/*")
        blob.chmod(0o600)
        with blob.open("r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b"\xaa\xbb\xcc")
        said = ctl(here, "storage", "fsck", code=11)
        assert "damaged" in said and "harms m@1" in said and "--repair" in said
        said = ctl(here, "storage", "fsck", "--repair", code=11)
        assert "1 blobs in quarantine" in said
        ctl(here, "model", "import", str(source))
        assert "Sound" in ctl(here, "storage", "fsck")
    key = tmp_path / "storage.key"
    ctl(state_dir / "a", "storage", "keygen", str(key))
    assert key.stat().st_mode & 0o777 == 0o600
    assert "is there already" in ctl(state_dir / "a", "storage", "keygen", str(key), code=4)
    process = start(state_dir / "b", "--encryption-key", str(key))
    try:
        here = state_dir / "b"
        cut = tmp_path / "cut.tar"
        cut.write_bytes(saved.read_bytes()[:300_000])
        assert "not a sound backup" in ctl(here, "storage", "restore", str(cut), code=11)
    finally:
        process.kill()
        process.wait()
    process = start(state_dir / "c")
    try:
        here = state_dir / "c"
        assert "Restored 1 blobs" in ctl(here, "storage", "restore", str(saved))
        address, until = socket_address(here, "storage"), time.monotonic() + 60
        while (shown := ctl_forked.run("--address", address, "model", "show", "m")).returncode == 8:
            assert time.monotonic() < until  # the server begins anew
        assert "m@1" in shown.stdout
        assert process.poll() is None
        assert "Sound" in ctl(here, "storage", "fsck")
    finally:
        process.terminate()
        assert process.wait(30) == 0
    with storage(state_dir / "c", "--encryption-key", str(key)):
        assert "1 files encrypted" in ctl(state_dir / "c", "storage", "rekey")
        assert source.read_bytes()[1000:1050] not in b"".join(
            file.read_bytes() for file in (state_dir / "c/storage/blobs").glob("*/*")
        )
        assert "Sound" in ctl(state_dir / "c", "storage", "fsck")
