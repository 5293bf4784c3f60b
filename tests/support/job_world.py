"""Storage in this process, and jobs' work run on it: kinds are tested without a job server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from llmos.api.optimizer.v1 import jobs_pb2, process_pb2
from llmos.api.storage.v1 import (
    data_pb2,
    data_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)
from llmos.lib.rpc import ErrorInterceptor
from llmos.servers.optimizer.catalog import StorageCatalog
from llmos.servers.optimizer.folder import Folder, Report, Tail
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.storage import Storage
from llmos.servers.optimizer.kinds import table
from llmos.servers.storage.data.local import LocalDatasets
from llmos.servers.storage.data.service import DatasetsService
from llmos.servers.storage.local import LocalStorage
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

    def __init__(self, root: Path, channel: grpc.aio.Channel) -> None:
        self.root, self.channel, self._jobs = root, channel, 0
        self.registry: registry_pb2_grpc.RegistryAsyncStub = registry_pb2_grpc.RegistryStub(channel)
        self.datasets: data_pb2_grpc.DatasetsAsyncStub = data_pb2_grpc.DatasetsStub(channel)

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

    async def run(self, spec: jobs_pb2.JobSpec, *, id: str = "", done: Done | None = None) -> Done:
        """Check the spec as the server does, and do the work. The same id goes on with a job."""
        kind, message = table.find(spec)
        needs = kind.check(message)
        kind.check_packages()
        catalog = StorageCatalog(self.channel)
        sources = [await catalog.find(ref) for ref in needs.models]
        for source in sources:
            kind.check_source(message, source)
        self._jobs += 1
        folder = Folder(self.root / "jobs" / (id or f"job{self._jobs}"))
        folder.work.mkdir(parents=True, exist_ok=True)
        launch = process_pb2.JobLaunch(
            id=folder.path.name,
            spec=spec,
            source=sources[0].ref if sources else "",
            sources=[source.ref for source in sources],
            datasets=[await catalog.find_dataset(ref) for ref in needs.datasets],
            attempt=self._jobs,
            threads=1,
        )
        report = Report(folder.progress(self._jobs))
        done = done or Done()
        done.folder = folder
        try:
            context = JobContext(
                launch, folder.work, Storage(self.channel), report, lambda name: self.channel
            )
            await kind.load()(context).run()
        finally:
            report.close()
            for message in Tail(folder.progress(self._jobs)).read():
                if message.result:
                    done.results.append(message.result)
                if message.HasField("comparison"):
                    done.comparisons[message.comparison.label] = message.comparison
                if message.stage:
                    done.stages.append(message.stage)
        return done


@asynccontextmanager
async def world(root: Path) -> AsyncIterator[World]:
    """Run storage on a socket under `root`."""
    local = LocalStorage(root / "storage")
    datasets = LocalDatasets(local.blobs, local.database)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    registry_pb2_grpc.add_RegistryServicer_to_server(RegistryService(local), server)
    registry_pb2_grpc.add_BlobsServicer_to_server(BlobsService(local), server)
    data_pb2_grpc.add_DatasetsServicer_to_server(DatasetsService(datasets), server)
    server.add_insecure_port(f"unix:{root}/grpc.sock")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{root}/grpc.sock") as channel:
            yield World(root, channel)
    finally:
        await server.stop(0)
        datasets.close()
        local.close()
