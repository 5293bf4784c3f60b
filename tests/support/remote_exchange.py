"""Exports and signatures over gRPC, so that one suite tests the core and the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc
from remote_storage import from_proto

from llmos.api.storage.v1 import exchange_pb2 as pb
from llmos.api.storage.v1 import exchange_pb2_grpc
from llmos.lib.rpc import from_rpc_error
from llmos.servers.storage.model import Progress, Registered
from llmos.servers.storage.places.exchange import Exchange, Exported
from llmos.servers.storage.signing.base import Signatures, Verified
from llmos.servers.storage.signing.book import Signature


class RemoteExchange(Exchange, Signatures):
    """Calls a storage server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._exchange = exchange_pb2_grpc.ExchangeStub(channel)
        self._signatures = exchange_pb2_grpc.SignaturesStub(channel)

    async def export_model(
        self, ref: str, destination: str
    ) -> AsyncGenerator[Progress | Exported, None]:
        call = self._exchange.ExportModel(pb.ExportModelRequest(ref=ref, destination=destination))
        try:
            async for step in call:
                if step.location:
                    yield Exported(step.location)
                else:
                    yield Progress(step.stage, step.done_bytes, step.total_bytes)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()

    async def convert_pickle(
        self, source: str, name: str
    ) -> AsyncGenerator[Progress | Registered, None]:
        call = self._exchange.ConvertPickle(pb.ConvertPickleRequest(source=source, name=name))
        try:
            async for step in call:
                if step.HasField("version"):
                    yield Registered(from_proto(step.version), step.existed)
                else:
                    yield Progress(step.stage, step.done_bytes, step.total_bytes)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()

    async def add_signature(self, ref: str, bundle: bytes, public_key: bytes) -> Verified:
        request = pb.AddSignatureRequest(ref=ref, bundle=bundle, public_key=public_key)
        try:
            answer = await self._signatures.AddSignature(request)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        return Verified(answer.ref, _signature(answer.signature))

    async def verify_version(
        self, ref: str, public_key: bytes
    ) -> AsyncGenerator[Progress | Verified, None]:
        call = self._signatures.VerifyVersion(
            pb.VerifyVersionRequest(ref=ref, public_key=public_key)
        )
        try:
            async for step in call:
                if step.HasField("signature"):
                    yield Verified(step.ref, _signature(step.signature))
                else:
                    yield Progress(step.stage, step.done_bytes, step.total_bytes)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()

    async def list_signatures(self, ref: str) -> list[Signature]:
        try:
            answer = await self._signatures.ListSignatures(pb.ListSignaturesRequest(ref=ref))
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        return [_signature(one) for one in answer.signatures]


def _signature(message: pb.Signature) -> Signature:
    return Signature(message.bundle, message.key_sha256, message.added_unix_s)
