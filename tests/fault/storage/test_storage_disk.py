"""A really full disk, a really read-only one, and what the user of the command line sees."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from model_files import tiny_gguf, tiny_safetensors
from storage_process import command

DIGEST = hashlib.sha256(bytes(range(256)) * 8192).hexdigest()
IN_NAMESPACE = ["unshare", "--map-root-user", "--mount"]
ENV = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}

# Runs in a mount namespace of its own, where it may mount; prints one line per attempt.
SCRIPT = """
import asyncio, hashlib, os, subprocess, sys
from pathlib import Path
from llmos.lib.errors import LLMOSError
from llmos.servers.storage.blobs.uploads_base import Part
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.upkeep.local import LocalMaintenance

state, big, small = map(Path, sys.argv[1:])

def mount(*flags):
    subprocess.run(["mount", *flags, str(state)], check=True)

async def attempt(what, call):
    try:
        print(what, "ok", await call)
    except LLMOSError as exc:
        print(what, type(exc).__name__, exc.reason)

async def take(store, source):
    async for step in store.import_model(str(source), ""):
        pass
    return step.version.ref

async def pieces(size):
    for _ in range(size >> 16):
        yield bytes(1 << 16)

async def parts(data, start, end=None):
    for at in range(start, end or len(data), 1 << 16):
        yield Part(at, data[at : at + (1 << 16)])

async def offset(store, id):
    return (await store.uploads.get(id)).offset

async def found(store):
    upkeep = LocalMaintenance(state / "storage", store.blobs, store.uploads)
    return [step async for step in upkeep.fsck(False, False)][-1].findings

def left():
    files = [p for p in (state / "storage").rglob("*") if p.is_file()]
    kept = ("lock", "boot")
    files = [p for p in files if "registry" not in p.name and p.name not in kept]
    return sorted(p.parent.name for p in files)

async def main():
    mount("-t", "tmpfs", "-o", "size=12m", "none")
    store = LocalStorage(state / "storage")
    await attempt("import-big", take(store, big))
    print("left", left())
    digest = hashlib.sha256(bytes(32 << 20)).hexdigest()
    await attempt("upload-big", store.write_blob(digest, pieces(32 << 20)))
    print("left", left())
    data = bytes(range(256)) * 8192
    begun = await store.uploads.create(hashlib.sha256(data).hexdigest(), len(data))
    await attempt("append", store.uploads.append(begun.id, parts(data, 0, 1 << 20)))
    filler = state / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError as exc:
            print("filled", exc.errno)
    await attempt("import-on-full", take(store, small))
    await attempt("upload-on-full", store.write_blob(hashlib.sha256(bytes(1 << 16)).hexdigest(),
                                                     pieces(1 << 16)))
    await attempt("append-on-full", store.uploads.append(begun.id, parts(data, 1 << 20)))
    print("left", left())
    filler.unlink()
    await attempt("get-upload", offset(store, begun.id))
    await attempt("append-after", store.uploads.append(begun.id, parts(data, 1 << 20)))
    await attempt("commit", store.uploads.commit(begun.id))
    await attempt("fsck", found(store))
    await attempt("import-after", take(store, small))
    await attempt("list", store.list_versions("", 0, ""))
    store.close()
    mount("-o", "remount,ro")
    await attempt("open-read-only", asyncio.to_thread(LocalStorage, state / "storage"))
    process = subprocess.run([sys.executable, "-m", "llmos.servers.storage", "--state-dir",
                              str(state), "--kernel", "none"], capture_output=True, text=True)
    print("start-read-only", process.returncode, process.stderr.count("\\n"),
          process.stderr.startswith("llmos-storage: Cannot write"))
    mount("-o", "remount,rw")
    store = LocalStorage(state / "storage")
    await attempt("get-again", store.get_version("small"))
    store.close()

asyncio.run(main())
"""


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="llmos-") as folder:
        yield Path(folder)


def may_mount(folder: Path) -> bool:
    mount = [*IN_NAMESPACE, "mount", "-t", "tmpfs", "none", str(folder)]
    try:
        return subprocess.run(mount, capture_output=True, timeout=20).returncode == 0
    except FileNotFoundError:
        return False


def test_full_and_read_only_disk(state_dir: Path, tmp_path: Path) -> None:
    if not may_mount(state_dir):
        pytest.skip("needs to mount a tmpfs in a user namespace (unshare --map-root-user)")
    big = tiny_safetensors(tmp_path / "big.safetensors", rows=200_000)  # 25 MB
    small = tiny_gguf(tmp_path / "small.gguf")
    done = subprocess.run(
        [*IN_NAMESPACE, sys.executable, "-c", SCRIPT, str(state_dir), str(big), str(small)],
        capture_output=True,
        text=True,
        timeout=120,
        env=ENV,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("list ok")]
    assert [line[:60].split(" Version")[0] for line in lines] == [
        "import-big ResourceExhausted DISK_FULL",
        "left []",
        "upload-big ResourceExhausted DISK_FULL",
        "left []",
        "append ok 1048576",
        "filled 28",
        "import-on-full ResourceExhausted DISK_FULL",
        "upload-on-full ResourceExhausted DISK_FULL",
        "append-on-full ResourceExhausted DISK_FULL",
        "left ['uploads']",
        "get-upload ok 1048576",
        "append-after ok 2097152",
        f"commit ok {(DIGEST, 2097152)}"[:60],
        "fsck ok 0",
        "import-after ok small@1",
        "open-read-only FailedPrecondition READ_ONLY",
        "start-read-only 1 1 True",
        "get-again ok",
    ]


def refused(*flags: str, state_dir: Path) -> str:
    done = subprocess.run(
        command(state_dir, *flags), capture_output=True, text=True, timeout=60, env=ENV
    )
    assert done.returncode in (1, 2) and done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_the_command_line_says(state_dir: Path) -> None:
    (state_dir / "file").touch()
    assert "Cannot write" in refused(state_dir=state_dir / "file")
    assert "imports must be at least 1" in refused("--imports", "0", state_dir=state_dir)
    assert "not a valid int" in refused("--imports", "x", state_dir=state_dir)


def test_a_missing_extra_stops_the_start(state_dir: Path) -> None:
    hide = "import sys, importlib.util as u; f = u.find_spec; "
    hide += "u.find_spec = lambda n, *a: None if n == 'gguf' else f(n, *a); "
    hide += "from llmos.servers.storage.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hide, "--state-dir", str(state_dir), "--kernel", "none"],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENV,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "llmos-storage: The Python package gguf is not installed; run: "
        "pip install 'llmos[storage]'\n"
    )
