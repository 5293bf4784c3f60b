"""Which services serve exports, conversions and signatures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from llmos.api.storage.v1 import exchange_pb2_grpc
from llmos.lib.publish import Tell, nobody
from llmos.lib.serve import Server
from llmos.servers.storage.binding import Bound
from llmos.servers.storage.local import LocalStorage
from llmos.servers.storage.places.exchange import LocalExchange
from llmos.servers.storage.places.service import ExchangeService
from llmos.servers.storage.signing.base import LocalSignatures
from llmos.servers.storage.signing.service import SignaturesService


@contextlib.contextmanager
def exchanging(
    server: Server, storage: LocalStorage, stall_ms: int, tell: Tell = nobody
) -> Iterator[None]:
    """Serve them while inside. To be entered before the server's start."""
    with (
        contextlib.closing(LocalExchange(storage)) as exchange,
        contextlib.closing(LocalSignatures(storage)) as signatures,
    ):
        server.add(
            exchange_pb2_grpc.add_ExchangeServicer_to_server,
            Bound(ExchangeService(exchange, tell)),
            stall_ms=stall_ms,
        )
        server.add(
            exchange_pb2_grpc.add_SignaturesServicer_to_server,
            Bound(SignaturesService(signatures)),
            stall_ms=stall_ms,
        )
        yield
