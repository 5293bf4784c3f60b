"""What a method's descriptor says about it: arity, idempotency, and where its key is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf import descriptor_pb2, descriptor_pool

from llmos.api.kernel.v1 import options_pb2

_SAFE = (
    descriptor_pb2.MethodOptions.IDEMPOTENT,
    descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
)


@dataclass(frozen=True, slots=True)
class Method:
    """One method; `route` is the field number of its key in the first message, 0 for none."""

    path: str
    idempotent: bool = False
    route: int = 0
    client_streaming: bool = False
    server_streaming: bool = False


UNKNOWN = Method("")


def of_file(file: descriptor_pb2.FileDescriptorProto) -> Iterable[tuple[str, list[Method]]]:
    """Yield each service of a file with its methods."""
    for service in file.service:
        name = f"{file.package}.{service.name}" if file.package else service.name
        yield (
            name,
            [
                Method(
                    path=f"/{name}/{m.name}",
                    idempotent=m.options.idempotency_level in _SAFE,
                    route=m.options.Extensions[options_pb2.route].field,
                    client_streaming=m.client_streaming,
                    server_streaming=m.server_streaming,
                )
                for m in service.method
            ],
        )


def files_of(service: str) -> list[bytes]:
    """Return the serialized files that define a service of the default pool, dependencies first."""
    pool = descriptor_pool.Default()
    try:
        top = pool.FindServiceByName(service).file
    except KeyError:
        return []
    found: dict[str, bytes] = {}

    def visit(file: object) -> None:
        name: str = file.name  # type: ignore[attr-defined]
        if name not in found:
            for dependency in file.dependencies:  # type: ignore[attr-defined]
                visit(dependency)
            found[name] = file.serialized_pb  # type: ignore[attr-defined]

    visit(top)
    return list(found.values())


_known: dict[str, Method] = {}


def lookup(path: str) -> Method:
    """Return what the default pool knows of a method path; UNKNOWN when it does not."""
    method = _known.get(path)
    if method is None:
        method = UNKNOWN
        service = path[1:].rpartition("/")[0]
        for data in files_of(service)[-1:]:
            for name, methods in of_file(descriptor_pb2.FileDescriptorProto.FromString(data)):
                if name == service:
                    _known.update({m.path: m for m in methods})
                    method = _known.get(path, UNKNOWN)
    return method
