"""Storage beside plain copying and MLflow's registry: import, reading, sharing, metadata.

Real processes on one disk; last line is one JSON object. Rates are MB/s (10^6 bytes), medians of
interleaved rounds. Reads are from the disk: the file is dropped from the page cache before each,
where the system lets us, and from memory as well. SIZE_MB (environment) sets the size of the file,
256 by default; 1024 for the figure that the design asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
from lib.storage_metadata import metadata_rates
from safetensors.numpy import save_file

from llmos.api.storage.v1 import maintenance_pb2, maintenance_pb2_grpc, registry_pb2
from llmos.api.storage.v1 import registry_pb2_grpc as registry_grpc
from llmos.lib.bulk import read_blob
from llmos.lib.config import socket_address
from llmos.lib.serve import OPTIONS

SIZE_MB = int(os.environ.get("SIZE_MB", "256"))
ROUNDS = 3
TENSORS = 100
METADATA = 100
MLFLOW = Path(__file__).parent / ".peers/mlflow/bin/python"
_MLFLOW = """
import json, os, statistics, sys, tempfile, time
os.environ["MLFLOW_LOGGING_LEVEL"] = "ERROR"
import mlflow
from mlflow import MlflowClient
folder, source, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
client = MlflowClient()
experiment = client.create_experiment("bench", artifact_location=f"file://{folder}/artifacts")
run = client.create_run(experiment).info.run_id
start = time.perf_counter()
client.log_artifact(run, source, "model")
imported = time.perf_counter() - start
client.create_registered_model("m")
start = time.perf_counter()
for _ in range(count):
    client.create_model_version("m", f"{folder}/artifacts/{run}/artifacts/model", run)
created = count / (time.perf_counter() - start)
start = time.perf_counter()
for _ in range(count):
    client.get_model_version("m", "1")
got = count / (time.perf_counter() - start)
start = time.perf_counter()
for i in range(count):
    client.set_registered_model_alias("m", "prod", str(1 + i % count))
moved = count / (time.perf_counter() - start)
print(json.dumps({"version": mlflow.__version__, "import_s": imported, "create_per_s": created,
                  "get_per_s": got, "alias_per_s": moved}))
"""


def make(path: Path, changed: int, seed: int) -> Path:
    """Write a model of 100 equal tensors, the first `changed` of them with other values."""
    rows = SIZE_MB * 10**6 // TENSORS // 4096
    base = np.random.default_rng(0).integers(0, 2**32, (TENSORS, rows, 1024), dtype=np.uint32)
    tensors = {f"t{i:03}": base[i].view(np.float32) for i in range(TENSORS)}
    other = np.random.default_rng(seed)
    for i in range(changed):
        new = other.integers(0, 2**32, (rows, 1024), dtype=np.uint32)
        tensors[f"t{i:03}"] = new.view(np.float32)
    save_file(tensors, path)
    return path


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@contextlib.contextmanager
def server(state: Path) -> Iterator[None]:
    """Run llmos-storage meanwhile."""
    command = [sys.executable, "-m", "llmos.servers.storage", "--state-dir", str(state)]
    flags = ["--kernel", "none", "--scrub-bytes-per-s", "0", "--log-level", "error"]
    process = subprocess.Popen([*command, *flags])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def rate(size: int, once: Callable[[], Awaitable[object]]) -> float:
    """Return the rate of one `once`, MB/s."""
    start = time.perf_counter()
    await once()
    return size / (time.perf_counter() - start) / 1e6


async def run(*words: str) -> None:
    """Run a program to its end."""
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.DEVNULL)
    assert await process.wait() == 0


class Bench:
    """The channels of a storage server, and what is asked of it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.registry = registry_grpc.RegistryStub(channel)
        self.blobs = registry_grpc.BlobsStub(channel)
        self.upkeep = maintenance_pb2_grpc.MaintenanceStub(channel)
        self.direct_address = ""

    async def bring(self, source: Path, name: str) -> registry_pb2.ModelVersion:
        call = self.registry.ImportModel(
            registry_pb2.ImportModelRequest(source=str(source), name=name)
        )
        return [step async for step in call][-1].version

    async def stream(self, digest: str, offset: int = 0, length: int = 0) -> int:
        request = registry_pb2.ReadBlobRequest(sha256=digest, offset=offset, length=length)
        return sum([len(piece.data) async for piece in self.blobs.ReadBlob(request)])

    async def direct(self, digest: str) -> int:
        """Read from the direct address, by the library."""
        seen = 0

        def take(piece: memoryview) -> None:
            nonlocal seen
            seen += len(piece)

        if not self.direct_address:
            space = await self.upkeep.Df(maintenance_pb2.DfRequest())
            self.direct_address = space.direct_address
        await read_blob(self.direct_address, digest, take)
        return seen

    async def stored(self) -> int:
        return (await self.upkeep.Df(maintenance_pb2.DfRequest())).stored_bytes


def touch_pages(path: Path) -> None:
    """Map a file and touch each page, as an engine does."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        data.madvise(mmap.MADV_SEQUENTIAL)
        sum(data[:: mmap.PAGESIZE])


async def reading(bench: Bench, version: registry_pb2.ModelVersion) -> dict[str, float]:
    """Return the rates of reading, by way, from the disk and from memory."""
    file = version.files[0]
    path, size = Path(file.path), file.size
    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "cat": lambda: run("cat", str(path)),
        "path_mmap": lambda: asyncio.to_thread(touch_pages, path),
        "stream": lambda: bench.direct(file.sha256),
        "stream_grpc": lambda: bench.stream(file.sha256),
    }
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, once in ways.items():
            forget(path)
            times.setdefault(f"{name}_disk", []).append(await rate(size, once))
            times.setdefault(f"{name}_memory", []).append(await rate(size, once))
    found = {name: round(statistics.median(values), 1) for name, values in times.items()}
    for place in ("disk", "memory"):
        for way in ("path_mmap", "stream", "stream_grpc"):
            ratio = found[f"{way}_{place}"] / found[f"cat_{place}"]
            found[f"{way}_of_cat_{place}"] = round(ratio, 3)
    start = time.perf_counter()
    for i in range(METADATA):
        await bench.stream(file.sha256, i * 4096, 4096)
    found["ranges_4KiB_per_s"] = round(METADATA / (time.perf_counter() - start), 1)
    return found


async def importing(bench: Bench, folder: Path) -> tuple[dict[str, float], Path]:
    """Return the rates of bringing in files beside `cp` and fsync, and the last source."""
    found: dict[str, list[float]] = {}
    for i in range(ROUNDS):
        source = make(folder / f"m{i}.safetensors", TENSORS, seed=100 + i)
        size = source.stat().st_size
        copy = folder / "copy"

        async def plain(source: Path = source, copy: Path = copy) -> None:
            await run("cp", str(source), str(copy))
            await run("sync", str(copy))

        async def bring(source: Path = source, i: int = i) -> None:
            await bench.bring(source, f"m{i}")

        def hashed(source: Path = source) -> None:
            with source.open("rb") as file:
                hashlib.file_digest(file, "sha256")

        found.setdefault("cp_and_fsync", []).append(await rate(size, plain))
        found.setdefault("import", []).append(await rate(size, bring))
        found.setdefault("import_again", []).append(await rate(size, bring))
        one = lambda hashed=hashed: asyncio.to_thread(hashed)  # noqa: E731
        found.setdefault("sha256_floor", []).append(await rate(size, one))
        copy.unlink()
    return {k: round(statistics.median(v), 1) for k, v in found.items()}, source


async def sharing(bench: Bench, folder: Path) -> dict[str, float]:
    """Return what a fine-tune of 1% of the tensors costs, and its rates."""
    base = make(folder / "base.safetensors", 0, 0)
    tuned = make(folder / "tuned.safetensors", 1, 7)
    await bench.bring(base, "base")
    before, size = await bench.stored(), tuned.stat().st_size
    start = time.perf_counter()
    version = await bench.bring(tuned, "tuned")
    took = time.perf_counter() - start
    grown = await bench.stored() - before
    start = time.perf_counter()
    found = await bench.registry.GetVersion(registry_pb2.GetVersionRequest(ref="tuned"))
    made = time.perf_counter() - start
    assert Path(found.version.files[0].path).stat().st_size == size
    digest = version.files[0].sha256
    streamed = await rate(size, lambda: bench.direct(digest))
    return {
        "space_of_1_percent": round(grown / size, 4),
        "import_MB_s": round(size / took / 1e6, 1),
        "first_path_s": round(made, 3),
        "stream_MB_s": round(streamed, 1),
    }


async def metadata(bench: Bench, folder: Path) -> dict[str, float]:
    """Return how many versions are registered and looked up a second, one call at a time."""
    digests = []
    for i in range(METADATA):
        source = folder / "small.safetensors"
        save_file({"w": np.full((4,), i, dtype=np.float32)}, source)
        data = source.read_bytes()
        digests.append(hashlib.sha256(data).hexdigest())
        first = registry_pb2.WriteBlobRequest(sha256=digests[-1])
        await bench.blobs.WriteBlob(iter([first, registry_pb2.WriteBlobRequest(data=data)]))
    start = time.perf_counter()
    for digest in digests:
        file = registry_pb2.File(name="model.safetensors", sha256=digest)
        version = registry_pb2.ModelVersion(name="small", files=[file])
        await bench.registry.CreateVersion(registry_pb2.CreateVersionRequest(version=version))
    created = METADATA / (time.perf_counter() - start)
    start = time.perf_counter()
    for i in range(METADATA):
        request = registry_pb2.GetVersionRequest(ref=f"small@{i + 1}")
        await bench.registry.GetVersion(request)
    got = METADATA / (time.perf_counter() - start)
    return {"create_per_s": round(created, 1), "get_per_s": round(got, 1)}


async def mlflow(folder: Path, source: Path) -> dict[str, float] | None:
    """Return MLflow's figures for the same, None where it is not installed."""
    if not MLFLOW.exists():
        return None
    (folder / "mlflow").mkdir()
    words = [str(MLFLOW), "-c", _MLFLOW, str(folder / "mlflow"), str(source), str(METADATA)]
    process = await asyncio.create_subprocess_exec(
        *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"MLflow failed: {err.decode()[-1000:]}")
    found = json.loads(out.splitlines()[-1])
    found["import_MB_s"] = round(source.stat().st_size / found.pop("import_s") / 1e6, 1)
    return {k: round(v, 1) if isinstance(v, float) else v for k, v in found.items()}


async def measure(folder: Path) -> dict[str, object]:
    """Return all results."""
    state = folder / "state"
    with server(state):
        async with grpc.aio.insecure_channel(
            socket_address(state, "storage"),
            options=[*OPTIONS, ("grpc.max_reconnect_backoff_ms", 200)],
        ) as channel:
            await asyncio.wait_for(channel.channel_ready(), 120)
            bench = Bench(channel)
            imports, source = await importing(bench, folder)
            version = registry_pb2.GetVersionRequest(ref=f"m{ROUNDS - 1}")
            found = (await bench.registry.GetVersion(version)).version
            return {
                "size_MB": SIZE_MB,
                "import_MB_s": imports,
                "read_MB_s": await reading(bench, found),
                "fine_tune": await sharing(bench, folder),
                "metadata": await metadata(bench, folder),
                "mlflow": await mlflow(folder, source),
                "registry": await asyncio.to_thread(metadata_rates, 100),
            }


def main() -> None:
    """Run it all and print the results."""
    folder = Path(tempfile.mkdtemp(prefix="llmos-bench-"))
    try:
        print(json.dumps(asyncio.run(measure(folder))))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
