"""The work of the kinds that train: fetch, prepare, train, register; what is done is kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from llmos.api.optimizer.v1 import jobs_pb2, process_pb2
from llmos.api.storage.v1 import data_pb2, data_pb2_grpc, registry_pb2
from llmos.lib import errors
from llmos.servers.optimizer.job.context import JobContext, Stopped, metric
from llmos.servers.optimizer.job.figures import comparison
from llmos.servers.optimizer.job.models.subject import WEIGHTS
from llmos.servers.optimizer.job.storage import patiently
from llmos.servers.optimizer.train.budget import Budgets
from llmos.servers.optimizer.train.examples import Examples, Splits
from llmos.servers.optimizer.train.fit import MEASURES, Measures, Outcome, fit, told
from llmos.servers.optimizer.train.gate import Gate
from llmos.servers.optimizer.train.plan import Plan
from llmos.servers.optimizer.train.rank import ERROR
from llmos.servers.optimizer.train.setup import Workshop
from llmos.servers.optimizer.train.watcher import Watcher

_RESTARTS = 3
_NAMES = {"lora": "-lora", "distil": "-small"}  # what a result's name ends with by default
log = logging.getLogger(__name__)


def workshop(launch: process_pb2.JobLaunch, work: Path) -> Workshop:
    """Return the workshop of a job."""
    kind = launch.spec.WhichOneof("kind") or ""
    return Workshop(kind, getattr(launch.spec, kind), work, list(launch.sources))


class TrainWork:
    """One try of a job."""

    def __init__(self, context: JobContext) -> None:
        """Prepare; nothing is done before `run`."""
        self._context = context
        self._spec = context.spec
        self._shop = workshop(context.launch, context.work)
        self._stop = threading.Event()
        self._measures = Measures(context.artifacts / MEASURES)
        self._private = self._shop.kind != "distil" and self._spec.HasField("privacy")

    async def run(self) -> None:
        """Do it. Raises Stopped when asked to stop, and LLMOSError."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stops)
        context = self._context
        context.tell("fetches the model and the data", 0.01)
        splits = await self._fetch()
        context.tell("prepares the examples", 0.03)
        examples = await asyncio.to_thread(self._shop.prepare, splits)
        if self._private:
            await self._reserve(examples)
        context.tell("trains", 0.1)
        async with self._watching():
            outcome = await self._train()
        if self._private:  # a job that fails keeps what it set aside: its steps may be known
            await Budgets(context.channel("storage")).settle(
                context.launch.datasets[0], context.launch.id, outcome.epsilon
            )
        context.tell("registers the result", 0.97)
        await self._register(outcome)

    def _stops(self) -> None:
        self._stop.set()
        self._context.tell("stops after this step")

    # Before.

    async def _fetch(self) -> Splits:
        storage, work = self._context.storage, self._context.work
        for ref, folder in zip(self._shop.sources, ("source", "student"), strict=False):
            await storage.lay_out(await storage.version(ref), work / folder)
        stub: data_pb2_grpc.DatasetsAsyncStub = data_pb2_grpc.DatasetsStub(
            self._context.channel("storage")
        )
        ref = self._context.launch.datasets[0]

        async def about() -> data_pb2.GetDatasetResponse:
            return await stub.GetDataset(data_pb2.GetDatasetRequest(ref=ref), timeout=60)

        found = (await patiently(about)).dataset
        data, kind = self._spec.data, self._shop.kind
        names = [split.name for split in found.splits]
        train = data.split or (names[0] if len(names) == 1 else "train")
        validation = data.validation_split or ("validation" if "validation" in names else "")
        for field, name in (("split", train), ("validation_split", validation)):
            if name and name not in names:
                raise errors.InvalidArgument(
                    "BAD_SPEC",
                    f"{kind}.data.{field} is {name[:60]!r}; {ref} has {', '.join(names)}.",
                )
        return Splits(
            ref=ref,
            train=await self._split(found, train),
            validation=await self._split(found, validation) if validation else None,
            text_column=found.text_column,
            label_column=found.label_column,
        )

    async def _split(self, found: data_pb2.Dataset, name: str) -> Path:
        split = next(split for split in found.splits if split.name == name)
        target = self._context.work / "splits" / f"{name}.parquet"
        file = registry_pb2.File(name=name, sha256=split.sha256, size=split.size, path=split.path)
        await self._context.storage.fetch(file, target)
        return target

    # Privacy.

    async def _reserve(self, examples: Examples) -> None:
        from llmos.servers.optimizer.train import private

        rows, privacy = examples.train.rows, self._spec.privacy
        plan = Plan.of(self._spec.training, rows, 1.0)
        noise = await asyncio.to_thread(private.sigma, privacy, plan)
        delta = private.delta_of(privacy, rows)
        epsilon = private.spent(noise, plan.batch / rows, plan.steps, delta)
        launch = self._context.launch
        budgets = Budgets(self._context.channel("storage"))
        await budgets.reserve(launch.datasets[0], launch.id, epsilon)

    # Training.

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        """Wait for inference between steps, where there is a kernel that knows of it."""
        if self._context.launch.kernel == "none":
            yield
            return
        watcher = Watcher(self._context.channel("kernel"), self._context.work)
        task = asyncio.create_task(watcher.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _train(self) -> Outcome:
        processes = self._spec.distribution.processes
        if processes > 1 and not (done := Outcome.load(self._context.work)):
            await self._torchrun(processes)
            done = Outcome.load(self._context.work)
            assert done is not None  # torchrun ended well, so its first process wrote it
        if processes > 1 and done:
            return done
        gate = Gate(self._context.work, self._stop)
        threads = self._context.launch.threads
        return await asyncio.to_thread(fit, self._shop, gate, self._tell, threads)

    def _threads(self, processes: int) -> int:
        return max(1, self._context.launch.threads // processes)

    async def _torchrun(self, processes: int) -> None:
        restarts = self._spec.distribution.max_restarts or _RESTARTS
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "llmos.servers.optimizer.train.rank"),
            *(str(processes), str(restarts), str(self._context.work.parent)),
            env={"OMP_NUM_THREADS": str(self._threads(processes)), **os.environ},
        )
        try:
            while child.returncode is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(child.wait(), 0.2)
                if self._stop.is_set():  # what was done since the last checkpoint is done again
                    raise Stopped
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        error = self._context.work / ERROR
        if error.exists():
            told = json.loads(error.read_text())
            raise getattr(errors, told["type"])(told["reason"], told["text"])
        if child.returncode:
            raise errors.Aborted(
                "PROCESSES_DIED",
                f"Processes of the training died more than {restarts} times; see the job's log.",
            )

    def _tell(self, now: jobs_pb2.TrainingProgress) -> None:
        self._measures.add(now)
        self._context.report.send(told(now))

    # After.

    async def _register(self, outcome: Outcome) -> None:
        spec, sources = self._spec, self._shop.sources
        parents = sources if self._shop.kind != "train" else []
        figures = [metric("train_loss", outcome.loss), metric("steps", outcome.steps)]
        figures.append(metric("train_time", outcome.seconds, "s"))
        for name, value in _measured(outcome, outcome.validation_loss).items():
            figures.append(metric(name, value))
        for name, value in _measured(outcome, outcome.validation_before).items():
            figures.append(metric(f"{name}_before", value))
        if self._private:
            figures.append(metric("privacy_epsilon", outcome.epsilon))
        if parents:
            before = _measured(outcome, outcome.validation_before)
            source = await self._context.storage.version(sources[0])
            self._tell_figures("original", sources[0], before | _size(source.files))
        for folder in sorted((self._context.work / "result").iterdir()):
            name = spec.name
            if not name or (folder.name == "lora-merge" and spec.lora.merge):
                base = sources[0].partition("@")[0] if sources else ""
                name = (name or base) if folder.name != "lora-merge" else base
                name += "" if spec.name else _NAMES.get(folder.name, "")
            ref = await self._context.register(
                {path.name: path for path in _files(folder)},
                step=folder.name,
                parents=parents,
                datasets=list(self._context.launch.datasets),
                metrics=figures,
                name=name,
            )
            after = {"train_loss": outcome.loss, **_measured(outcome, outcome.validation_loss)}
            made = await self._context.storage.version(ref)
            self._tell_figures(folder.name, ref, after | _size(made.files))

    def _tell_figures(self, label: str, ref: str, values: Mapping[str, float]) -> None:
        self._context.compared(comparison(label, ref, values, 0))


def _measured(outcome: Outcome, loss: float) -> dict[str, float]:
    """Return what a loss on the validation split says; nothing where none was measured."""
    if math.isnan(loss):
        return {}
    more = {"perplexity": math.exp(min(loss, 700.0))} if outcome.foretells else {}
    return {"validation_loss": loss, **more}


def _size(files: Iterable[registry_pb2.File]) -> dict[str, float]:
    return {"size": float(sum(file.size for file in files if file.name.endswith(WEIGHTS)))}


def _files(folder: Path) -> list[Path]:
    """Return a result's files, the weights first."""
    return sorted(folder.iterdir(), key=lambda path: (path.suffix != ".safetensors", path.name))
