"""The gRPC face of exports and conversions: converts and delegates, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from llmos.api.storage.v1 import exchange_pb2 as pb
from llmos.api.storage.v1 import exchange_pb2_grpc
from llmos.lib.call import same_host
from llmos.lib.publish import Tell, nobody
from llmos.servers.storage.model import Progress
from llmos.servers.storage.places.exchange import Exchange
from llmos.servers.storage.service import to_proto


class ExchangeService(exchange_pb2_grpc.ExchangeServicer):
    """Serves an Exchange."""

    def __init__(self, exchange: Exchange, tell: Tell = nobody) -> None:
        """Delegate to `exchange`; tell of new versions (event version.registered)."""
        self._exchange = exchange
        self._tell = tell

    async def ExportModel(
        self, request: pb.ExportModelRequest, context: Any
    ) -> AsyncIterator[pb.ExportModelResponse]:
        """Export, with progress."""
        last = Progress("")
        steps = self._exchange.export_model(request.ref, request.destination)
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, Progress):
                    last = step
                    yield pb.ExportModelResponse(
                        stage=step.stage, done_bytes=step.done_bytes, total_bytes=step.total_bytes
                    )
                else:
                    yield pb.ExportModelResponse(
                        stage="exported",
                        done_bytes=last.total_bytes,
                        total_bytes=last.total_bytes,
                        location=step.location,
                    )

    async def ConvertPickle(
        self, request: pb.ConvertPickleRequest, context: Any
    ) -> AsyncIterator[pb.ConvertPickleResponse]:
        """Convert and import, with progress."""
        steps = self._exchange.convert_pickle(request.source, request.name)
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, Progress):
                    yield pb.ConvertPickleResponse(
                        stage=step.stage, done_bytes=step.done_bytes, total_bytes=step.total_bytes
                    )
                    continue
                version = step.version
                if not step.existed:
                    self._tell(
                        "version.registered",
                        model=version.ref,
                        source=version.lineage.source,
                        job="",
                        size_bytes=version.size_bytes,
                    )
                yield pb.ConvertPickleResponse(
                    stage="existed already" if step.existed else "registered",
                    version=to_proto(version, same_host(context)),
                    existed=step.existed,
                )
