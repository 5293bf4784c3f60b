"""Storage's Registry as the core sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socket import gethostname

import grpc

from llmos.api.storage.v1 import data_pb2, data_pb2_grpc, registry_pb2_grpc
from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.lib.holds import VersionHolds
from llmos.lib.rpc import from_rpc_error
from llmos.servers.optimizer.seams import Need, Source

FORMATS = {
    pb.FORMAT_GGUF: "gguf",
    pb.FORMAT_SAFETENSORS: "safetensors",
    pb.FORMAT_ONNX: "onnx",
    pb.FORMAT_TORCHSCRIPT: "torchscript",
    pb.FORMAT_TORCH_EXPORT: "torch-export",
}
TASKS = {pb.TASK_GENERATE: "generate", pb.TASK_EMBED: "embed", pb.TASK_PREDICT: "predict"}
_TIMEOUT_S = 10.0


class StorageCatalog:
    """Finds versions over a channel on which storage is called."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Call storage over `channel`."""
        self._registry: registry_pb2_grpc.RegistryAsyncStub = registry_pb2_grpc.RegistryStub(
            channel
        )
        self._channel = channel
        self._holds: VersionHolds | None = None
        self._datasets: data_pb2_grpc.DatasetsAsyncStub = data_pb2_grpc.DatasetsStub(channel)

    async def find(self, ref: str) -> Source:
        """Return the version that `ref` means; see Catalog.find."""
        try:
            answer = await self._registry.GetVersion(
                pb.GetVersionRequest(ref=ref), timeout=_TIMEOUT_S
            )
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc
        found = answer.version
        return Source(
            ref=f"{found.name}@{found.version}",
            format=FORMATS.get(found.format, ""),
            task=TASKS.get(found.task, ""),
        )

    async def find_dataset(self, ref: str) -> str:
        """Return the data set version that `ref` means; see Catalog.find_dataset."""
        try:
            answer = await self._datasets.GetDataset(
                data_pb2.GetDatasetRequest(ref=ref), timeout=_TIMEOUT_S
            )
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc
        return f"{answer.dataset.name}@{answer.dataset.version}"

    async def keep(self, place: str, needed: Callable[[], Iterable[Need]]) -> None:
        """See Catalog.keep."""
        name = f"optimizer on {gethostname()} ({place})"
        self._holds = VersionHolds(self._channel, name, needed)
        await self._holds.keep()

    async def settle(self) -> None:
        """See Catalog.settle."""
        if self._holds is not None:
            await self._holds.settle()

    def changed(self) -> None:
        """See Catalog.changed."""
        if self._holds is not None:
            self._holds.changed()
