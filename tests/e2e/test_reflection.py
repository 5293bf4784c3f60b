"""A client that has no proto file: what it knows of the whole OS is what the kernel reflects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from whole_os import WholeOS


class Reflected:
    """As `buf curl` and grpcurl do it: method names and JSON in, JSON out."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = descriptor_pool.DescriptorPool(self._database)

    def services(self) -> set[str]:
        return set(self._database.get_services())

    def __call__(self, service: str, method: str, /, **fields: Any) -> list[dict[str, Any]]:
        """Call; return the replies. Raises grpc.RpcError."""
        found = self._pool.FindServiceByName(service).FindMethodByName(method)
        assert not found.client_streaming
        request = message_factory.GetMessageClass(found.input_type)
        reply = message_factory.GetMessageClass(found.output_type)
        assert request.DESCRIPTOR.file.pool is self._pool  # and not what this process imports
        made = json_format.ParseDict(fields, request())
        call = self._channel.unary_stream(
            f"/{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        return [json_format.MessageToDict(message) for message in call(made, timeout=60)]


@pytest.fixture
def client(os_up: WholeOS) -> Iterator[Reflected]:
    with grpc.insecure_channel(os_up.kernel) as channel:
        yield Reflected(channel)


def test_it_finds_every_servers_services(client: Reflected) -> None:
    assert client.services() >= {
        "llmos.api.kernel.v1.Admin",
        "llmos.api.init.v1.Init",
        "llmos.api.storage.v1.Registry",
        "llmos.api.memory.v1.Buffers",
        "llmos.api.execution.v1.Execution",
        "llmos.api.optimizer.v1.Jobs",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
    }


def test_it_calls_the_kernel_and_every_server(client: Reflected) -> None:
    (ports,) = client("llmos.api.kernel.v1.Admin", "ListPorts")
    assert {"init", "storage", "gateway"} <= {port["name"] for port in ports["ports"]}
    (processes,) = client("llmos.api.init.v1.Init", "ListProcesses")
    assert {p["name"] for p in processes["processes"]} >= {"kernel", "execution"}
    (versions,) = client("llmos.api.storage.v1.Registry", "ListVersions", name="smollm2")
    assert versions["versions"][0]["architecture"] == "llama"
    (devices,) = client("llmos.api.memory.v1.Residency", "ListDevices")
    assert devices["devices"][0]["name"] == "cpu"
    (jobs,) = client("llmos.api.optimizer.v1.Jobs", "ListJobs")
    assert all(job["id"] for job in jobs.get("jobs", ()))  # other tests may have submitted some
    (live,) = client("inference.GRPCInferenceService", "ServerLive")
    assert live == {"live": True}
    (health,) = client("grpc.health.v1.Health", "Check", service="llmos.api.storage.v1.Registry")
    assert health == {"status": "SERVING"}


def test_it_streams_a_generation(client: Reflected) -> None:
    pieces = client(
        "llmos.api.execution.v1.Execution",
        "Generate",
        model="smollm2",
        prompt="1, 2, 3, 4,",
        max_tokens=4,
        sampling={"temperature": 0},
    )
    assert len(pieces) > 1
    assert "".join(piece.get("text", "") for piece in pieces).startswith(" 5,")
    assert pieces[-1]["usage"]["completionTokens"] == 4


def test_it_reads_the_reason_of_an_error(client: Reflected) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client("llmos.api.storage.v1.Registry", "GetVersion", ref="nope")
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.NOT_FOUND and "'nope'" in error.details()
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info) and info.reason == "NO_SUCH_MODEL"
