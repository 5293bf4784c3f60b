"""Server reflection over descriptors that come as bytes, from whoever serves the services."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

log = logging.getLogger(__name__)

Described = Iterable[tuple[str, Sequence[bytes]]]


class ReflectionService(reflection_pb2_grpc.ServerReflectionServicer):  # type: ignore[misc]
    """grpc.reflection.v1alpha for services whose set changes while it is served."""

    def __init__(self, described: Callable[[], Described | None]) -> None:
        """Ask `described` at each call: None = as before, else every service with its files."""
        self._described = described
        self._current: Any = _servicer(())

    async def ServerReflectionInfo(self, request_iterator: Any, context: Any) -> Any:
        """See grpc.reflection.v1alpha."""
        if (services := self._described()) is not None:
            self._current = _servicer(services)
        async for reply in self._current.ServerReflectionInfo(request_iterator, context):
            yield reply


def _servicer(services: Described) -> Any:
    pool = descriptor_pool.DescriptorPool()
    names, added = [], set[str]()
    for service, files in services:
        try:
            for data in files:
                # Compilers of other languages describe the same file a little differently
                # (json_name, reserved ranges): the first one stands.
                name = descriptor_pb2.FileDescriptorProto.FromString(data).name
                if name not in added:
                    pool.AddSerializedFile(data)
                    added.add(name)
            pool.FindServiceByName(service)
        except (TypeError, KeyError) as exc:
            log.warning("descriptors of %s left out: %s", service, exc)
            continue
        names.append(service)
    return reflection.aio.ReflectionServicer(names, pool=pool)
