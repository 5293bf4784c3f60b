"""Where calls to workers go: through the kernel, or without one straight to each worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grpc

from llmos.api.execution.v1 import worker_pb2 as pb
from llmos.api.execution.v1 import worker_pb2_grpc
from llmos.api.execution.v1.zygote_pb2 import WorkerInfo
from llmos.api.inference import open_inference_pb2_grpc
from llmos.api.inference.open_inference_pb2 import ModelStatistics, ModelStatisticsRequest
from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.lib.errors import Unavailable
from llmos.lib.serve import OPTIONS
from llmos.servers.execution.manager.model import Worker
from llmos.servers.execution.manager.peers import once, patient
from llmos.servers.execution.manager.seams import Load

_CONTROL_S = 5.0
_PREFIX = "worker/"
EXECUTION = "llmos.api.execution.v1.Execution"


class KernelRouter:
    """See seams.Router: workers are ports of the kernel."""

    def __init__(self, channel: grpc.aio.Channel, kernel: str) -> None:
        """Call on the port's channel; workers attach to the address `kernel`."""
        self.kernel = kernel
        self._admin = admin_pb2_grpc.AdminStub(channel)
        self._control = worker_pb2_grpc.WorkerControlStub(channel)
        self._inference = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def loads(self) -> Mapping[str, Load]:
        """See seams.Router."""
        ports = await self._ports()
        return {p.name.removeprefix(_PREFIX): Load(p.running, p.served) for p in ports}

    async def serves(self, worker: Worker, key: str) -> bool:
        """See seams.Router."""
        return any(
            key in export.keys
            for port in await self._ports()
            if port.name == _PREFIX + worker.id and not port.draining and not port.stalled
            for export in port.exports
            if export.service == EXECUTION
        )

    async def drain(self, worker: Worker) -> int:
        """See seams.Router."""
        for port in await self._ports():
            if port.name == _PREFIX + worker.id and port.pid == worker.pid:
                request = admin_pb2.DrainPortRequest(port=port.port)
                answer = await once(self._admin.DrainPort(request, timeout=_CONTROL_S))
                return answer.running
        return 0

    async def describe(self, worker: Worker) -> WorkerInfo:
        """See seams.Router."""
        request = pb.DescribeWorkerRequest(ref=worker.id)
        answer = await patient(
            lambda: self._control.DescribeWorker(request, timeout=_CONTROL_S), _CONTROL_S
        )
        return answer.worker

    async def configure(self, worker: Worker, keys: Sequence[str], pinned: bool) -> None:
        """See seams.Router."""
        request = _configuring(worker, keys, pinned)
        await once(self._control.ConfigureWorker(request, timeout=_CONTROL_S))

    async def log(self, worker: Worker, level: str) -> None:
        """See seams.Router."""
        request = pb.LogWorkerRequest(ref=worker.id, log_level=level)
        await once(self._control.LogWorker(request, timeout=_CONTROL_S))

    async def statistics(self, worker: Worker) -> ModelStatistics:
        """See seams.Router."""
        # Keyless for callers, whom the manager answers: the key is said beside the request.
        call = self._inference.ModelStatistics(
            ModelStatisticsRequest(), timeout=_CONTROL_S, metadata=(("llmos-key", worker.grant),)
        )
        return (await once(call)).model_stats[0]

    async def _ports(self) -> list[admin_pb2.PortInfo]:
        request = admin_pb2.ListPortsRequest()
        answer = await once(self._admin.ListPorts(request, timeout=_CONTROL_S))
        return [p for p in answer.ports if p.name.startswith(_PREFIX)]


class DirectRouter:
    """See seams.Router: every worker has a Unix socket of its own."""

    kernel = "none"

    def __init__(self) -> None:
        """Start with no channels."""
        self._channels: dict[str, grpc.aio.Channel] = {}

    def channel(self, worker: Worker) -> grpc.aio.Channel:
        """Return the channel to a worker. Raises Unavailable when it does not listen."""
        if not worker.listen:
            raise Unavailable("NO_ADDRESS", f"The worker of {worker.ref} does not listen.")
        if worker.listen not in self._channels:
            self._channels[worker.listen] = grpc.aio.insecure_channel(
                worker.listen, options=OPTIONS
            )
        return self._channels[worker.listen]

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()

    async def loads(self) -> Mapping[str, Load]:
        """Return nothing: nobody counts calls here. Unloading still lets them end."""
        return {}

    async def serves(self, worker: Worker, key: str) -> bool:
        """See seams.Router."""
        return key in worker.keys

    async def drain(self, worker: Worker) -> int:
        """Return 0: the worker itself lets running calls end when it is told to stop."""
        return 0

    async def describe(self, worker: Worker) -> WorkerInfo:
        """See seams.Router."""
        control = worker_pb2_grpc.WorkerControlStub(self.channel(worker))
        request = pb.DescribeWorkerRequest(ref=worker.id)
        answer = await once(control.DescribeWorker(request, timeout=_CONTROL_S))
        return answer.worker

    async def statistics(self, worker: Worker) -> ModelStatistics:
        """See seams.Router."""
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(self.channel(worker))
        call = stub.ModelStatistics(ModelStatisticsRequest(), timeout=_CONTROL_S)
        return (await once(call)).model_stats[0]

    async def configure(self, worker: Worker, keys: Sequence[str], pinned: bool) -> None:
        """See seams.Router."""
        control = worker_pb2_grpc.WorkerControlStub(self.channel(worker))
        request = _configuring(worker, keys, pinned)
        await once(control.ConfigureWorker(request, timeout=_CONTROL_S))

    async def log(self, worker: Worker, level: str) -> None:
        """See seams.Router."""
        control = worker_pb2_grpc.WorkerControlStub(self.channel(worker))
        request = pb.LogWorkerRequest(ref=worker.id, log_level=level)
        await once(control.LogWorker(request, timeout=_CONTROL_S))


def _configuring(worker: Worker, keys: Sequence[str], pinned: bool) -> pb.ConfigureWorkerRequest:
    return pb.ConfigureWorkerRequest(
        ref=worker.id, keys=keys, pinned=pinned, instances=worker.options.instances
    )
