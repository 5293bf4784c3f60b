"""What of the OS's gRPC APIs the gateway shows under /llmos/v1: one line per call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from llmos.api.execution.v1 import execution_pb2
from llmos.api.init.v1 import init_pb2
from llmos.api.kernel.v1 import admin_pb2, events_pb2
from llmos.api.memory.v1 import buffers_pb2, residency_pb2
from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.storage.v1 import aliases_pb2, audit_pb2, maintenance_pb2, registry_pb2

# Importing a generated module is what makes its services known.
_LOADED = (
    *(execution_pb2, init_pb2, admin_pb2, events_pb2, buffers_pb2, residency_pb2),
    *(jobs_pb2, aliases_pb2, audit_pb2, maintenance_pb2, registry_pb2),
)
QUICK_S = 15.0  # a look-up
SLOW_S = 600.0  # loading a model, restarting a process, waiting for the end of a job's
STREAM_S = 24 * 3600.0  # whoever follows for longer opens the stream again


@dataclass(frozen=True)
class Call:
    """One endpoint: a path whose parameters are fields of the request, and the RPC behind it."""

    verb: str
    """GET changes nothing: its request comes from the query. POST takes a JSON object."""
    path: str
    server: str
    """Which server answers, e.g. `storage`."""
    rpc: str
    """`package.Service/Method`."""
    timeout_s: float = QUICK_S

    @property
    def method(self) -> MethodDescriptor:
        """The RPC's descriptor."""
        service, _, name = self.rpc.partition("/")
        return Default().FindServiceByName(service).methods_by_name[name]

    @property
    def request(self) -> type[Message]:
        """The class of its request."""
        return GetMessageClass(self.method.input_type)

    @property
    def response(self) -> type[Message]:
        """The class of its answer."""
        return GetMessageClass(self.method.output_type)

    @property
    def streams(self) -> bool:
        """Whether it answers by server-sent events."""
        return bool(self.method.server_streaming)


def _of(server: str, service: str, *calls: tuple[Any, ...]) -> Iterable[Call]:
    for verb, path, name, *limit in calls:
        yield Call(verb, path, server, f"llmos.api.{service}/{name}", *limit)


ADMIN, INIT, EXECUTION = "kernel.v1.Admin", "init.v1.Init", "execution.v1.Execution"
REGISTRY, ALIASES, AUDIT = "storage.v1.Registry", "storage.v1.Aliases", "storage.v1.Audit"
RESIDENCY, BUFFERS, JOBS = "memory.v1.Residency", "memory.v1.Buffers", "optimizer.v1.Jobs"

CALLS: tuple[Call, ...] = (
    *_of(
        "kernel",
        ADMIN,
        ("GET", "/kernel/ports", "ListPorts"),
        ("GET", "/kernel/services", "ListServices"),
        ("GET", "/kernel/calls", "ListCalls"),
        ("GET", "/kernel/stats", "GetStats"),
        ("GET", "/kernel/tenants", "ListTenants"),
        ("POST", "/kernel/limits", "UpdateLimits"),
        ("POST", "/kernel/calls/{id}/cancel", "CancelCall"),
        ("POST", "/kernel/ports/{port}/drain", "DrainPort"),
    ),
    *_of(
        "init",
        INIT,
        ("GET", "/processes", "ListProcesses"),
        ("POST", "/processes/{name:path}/restart", "RestartProcess", SLOW_S),
        ("GET", "/logs/{name:path}", "ReadLog", STREAM_S),
    ),
    *_of(
        "execution",
        EXECUTION,
        ("GET", "/models", "ListModels"),
        ("GET", "/models/watch", "WatchModels", STREAM_S),
        ("POST", "/models/{model}/load", "LoadModel", SLOW_S),
        ("POST", "/models/{model}/unload", "UnloadModel", SLOW_S),
        ("POST", "/models/{model}/classify", "Classify", SLOW_S),
        ("POST", "/models/{model}/tokenize", "Tokenize", SLOW_S),
    ),
    *_of(
        "storage",
        REGISTRY,
        ("GET", "/versions", "ListVersions"),
        ("GET", "/versions/{ref}", "GetVersion"),
        ("GET", "/versions/{ref}/lineage", "GetLineage"),
        ("POST", "/versions/{ref}/delete", "DeleteVersion"),
        ("POST", "/versions/{ref}/tags", "SetTags"),
    ),
    *_of(
        "storage",
        ALIASES,
        ("GET", "/aliases", "ListAliases"),
        ("GET", "/aliases/{model}/{alias}/moves", "ListAliasMoves"),
        ("POST", "/aliases/{model}/{alias}", "SetAlias"),
        ("POST", "/aliases/{model}/{alias}/rollback", "RollbackAlias"),
        ("POST", "/aliases/{model}/{alias}/delete", "DeleteAlias"),
    ),
    *_of(
        "storage",
        AUDIT,
        ("GET", "/audit", "ListEntries"),
        ("GET", "/audit/head", "GetHead"),
        ("GET", "/audit/check", "VerifyLog", SLOW_S),
    ),
    *_of("storage", "storage.v1.Maintenance", ("GET", "/storage", "Df")),
    *_of(
        "memory",
        RESIDENCY,
        ("GET", "/memory/devices", "ListDevices"),
        ("GET", "/memory/grants", "ListGrants"),
        ("GET", "/memory/changes", "ListChanges"),
    ),
    *_of("memory", BUFFERS, ("GET", "/memory/buffers", "ListBuffers")),
    *_of(
        "optimizer",
        JOBS,
        ("GET", "/jobs", "ListJobs"),
        ("POST", "/jobs", "SubmitJob"),
        ("GET", "/jobs/{id}/watch", "WatchJob", STREAM_S),
        ("POST", "/jobs/{id}/cancel", "CancelJob", SLOW_S),
        ("POST", "/jobs/{id}/pause", "PauseJob", SLOW_S),
        ("POST", "/jobs/{id}/resume", "ResumeJob", SLOW_S),
        ("GET", "/jobs/{id}/artifacts", "ListArtifacts"),
        ("GET", "/jobs/{id}/artifacts/{name:path}", "ReadArtifact", SLOW_S),
    ),
    *_of("kernel", "kernel.v1.Events", ("GET", "/events", "Subscribe", STREAM_S)),
)
