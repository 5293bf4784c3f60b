"""Storage in this process, and jobs' work run on it: kinds are tested without a job server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc, process_pb2
from llmos.api.storage.v1 import (
    aliases_pb2_grpc,
    data_pb2,
    data_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)
from llmos.lib.errors import LLMOSError
from llmos.lib.rpc import ErrorInterceptor
from llmos.servers.optimizer.catalog import StorageCatalog
from llmos.servers.optimizer.folder import Folder, Report, Tail
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.storage import Storage
from llmos.servers.optimizer.kinds import table
from llmos.servers.storage.data.local import LocalDatasets
from llmos.servers.storage.data.service import DatasetsService
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.registry.local import LocalAliases
from llmos.servers.storage.registry.service import AliasesService
from llmos.servers.storage.service import BlobsService, RegistryService


@dataclass
class Done:
    """What a job reported."""

    results: list[str] = field(default_factory=list)
    comparisons: dict[str, jobs_pb2.Comparison] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    folder: Folder | None = None

    def figures(self, label: str) -> dict[str, float]:
        return {m.name: m.value for m in self.comparisons[label].measures}

    def artifact(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder.path / "artifacts" / name


class World:
    """Models and data sets; `run` does a job's work in this process."""

    jobs: InThisProcess
    optimizer: grpc.aio.Channel

    def __init__(self, root: Path, channel: grpc.aio.Channel) -> None:
        self.root, self.channel, self._jobs = root, channel, 0
        self.registry: registry_pb2_grpc.RegistryAsyncStub = registry_pb2_grpc.RegistryStub(channel)
        self.datasets: data_pb2_grpc.DatasetsAsyncStub = data_pb2_grpc.DatasetsStub(channel)

    def _to(self, server: str) -> grpc.aio.Channel:
        return self.optimizer if server == "optimizer" else self.channel

    async def import_model(self, source: Path | str, name: str) -> str:
        request = registry_pb2.ImportModelRequest(source=str(source), name=name)
        async for answer in self.registry.ImportModel(request):
            last = answer
        return f"{last.version.name}@{last.version.version}"

    async def import_rows(
        self, name: str, splits: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> str:
        """Import rows of JSON, by split."""
        folder = self.root / f"rows-{name}"
        folder.mkdir()
        for split, rows in splits.items():
            text = "\n".join(json.dumps(row) for row in rows)
            (folder / f"{split}.jsonl").write_text(text)
        return await self.import_data(folder, name)

    async def import_data(self, source: Path, name: str, **options: Any) -> str:
        request = data_pb2.ImportDatasetRequest(source=str(source), name=name, **options)
        async for answer in self.datasets.ImportDataset(request):
            last = answer
        return f"{last.dataset.name}@{last.dataset.version}"

    async def version(self, ref: str) -> registry_pb2.ModelVersion:
        return (await self.registry.GetVersion(registry_pb2.GetVersionRequest(ref=ref))).version

    async def run(
        self, spec: jobs_pb2.JobSpec, *, id: str = "", done: Done | None = None, threads: int = 1
    ) -> Done:
        """Check the spec as the server does, and do the work. The same id goes on with a job."""
        kind, message = table.find(spec)
        needs = kind.check(message)
        kind.check_packages()
        catalog = StorageCatalog(self.channel)
        sources = [await catalog.find(ref) for ref in needs.models]
        for source in sources:
            kind.check_source(message, source)
        self._jobs += 1
        attempt = self._jobs  # others run within this one
        folder = Folder(self.root / "jobs" / (id or f"job{self._jobs}"))
        folder.work.mkdir(parents=True, exist_ok=True)
        launch = process_pb2.JobLaunch(
            id=folder.path.name,
            spec=spec,
            source=sources[0].ref if sources else "",
            sources=[source.ref for source in sources],
            datasets=[await catalog.find_dataset(ref) for ref in needs.datasets],
            attempt=attempt,
            threads=threads,
        )
        folder.write_launch(launch)
        report = Report(folder.progress(attempt))
        done = done or Done()
        done.folder = folder
        try:
            context = JobContext(launch, folder.work, Storage(self.channel), report, self._to)
            await kind.load()(context).run()
        finally:
            report.close()
            for message in Tail(folder.progress(attempt)).read():
                if message.result:
                    done.results.append(message.result)
                if message.HasField("comparison"):
                    done.comparisons[message.comparison.label] = message.comparison
                if message.stage:
                    done.stages.append(message.stage)
        return done


class InThisProcess(jobs_pb2_grpc.JobsServicer):
    """A job server that does the work in this process: pipelines and searches need one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ids: dict[str, str] = {}
        self._ended: dict[str, asyncio.Task[jobs_pb2.Job]] = {}
        self.submitted: list[jobs_pb2.JobSpec] = []

    async def SubmitJob(
        self, request: jobs_pb2.SubmitJobRequest, context: Any
    ) -> jobs_pb2.SubmitJobResponse:
        id = self._ids.setdefault(request.request_id, f"child{len(self._ids) + 1}")
        if id not in self._ended:
            self.submitted.append(request.spec)
            self._ended[id] = asyncio.create_task(self._work(id, request.spec))
        return jobs_pb2.SubmitJobResponse(job=jobs_pb2.Job(id=id))

    async def _work(self, id: str, spec: jobs_pb2.JobSpec) -> jobs_pb2.Job:
        job, done = jobs_pb2.Job(id=id, spec=spec, state=jobs_pb2.JOB_STATE_SUCCEEDED), Done()
        try:
            await self._world.run(spec, id=id, done=done)
        except LLMOSError as exc:
            job.state, job.error = jobs_pb2.JOB_STATE_FAILED, exc.message
        job.results.extend(done.results)
        job.comparisons.extend(done.comparisons.values())
        return job

    async def WatchJob(
        self, request: jobs_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        yield jobs_pb2.WatchJobResponse(job=await self._ended[request.id])


@asynccontextmanager
async def world(root: Path) -> AsyncIterator[World]:
    """Run storage on a socket under `root`."""
    local = LocalStorage(root / "storage")
    datasets = LocalDatasets(local.blobs, local.database)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    registry_pb2_grpc.add_RegistryServicer_to_server(RegistryService(local), server)
    aliases_pb2_grpc.add_AliasesServicer_to_server(
        AliasesService(LocalAliases(local.database)), server
    )
    registry_pb2_grpc.add_BlobsServicer_to_server(BlobsService(local), server)
    data_pb2_grpc.add_DatasetsServicer_to_server(DatasetsService(datasets), server)
    server.add_insecure_port(f"unix:{root}/grpc.sock")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{root}/grpc.sock") as channel:
            found = World(root, channel)
            found.jobs = InThisProcess(found)  # type: ignore[abstract]  # it needs two methods
            children = grpc.aio.server(interceptors=[ErrorInterceptor()])
            jobs_pb2_grpc.add_JobsServicer_to_server(found.jobs, children)
            children.add_insecure_port(f"unix:{root}/jobs.sock")
            await children.start()
            async with grpc.aio.insecure_channel(f"unix:{root}/jobs.sock") as other:
                found.optimizer = other
                yield found
            await children.stop(0)
    finally:
        await server.stop(0)
        datasets.close()
        local.close()
