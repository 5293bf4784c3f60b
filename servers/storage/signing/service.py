"""The gRPC face of signatures: converts and delegates, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from llmos.api.storage.v1 import exchange_pb2 as pb
from llmos.api.storage.v1 import exchange_pb2_grpc
from llmos.servers.storage.model import Progress
from llmos.servers.storage.signing.base import Signatures
from llmos.servers.storage.signing.book import Signature


class SignaturesService(exchange_pb2_grpc.SignaturesServicer):
    """Serves Signatures."""

    def __init__(self, signatures: Signatures) -> None:
        """Delegate to `signatures`."""
        self._signatures = signatures

    async def AddSignature(
        self, request: pb.AddSignatureRequest, context: Any
    ) -> pb.AddSignatureResponse:
        """Keep one."""
        made = await self._signatures.add_signature(request.ref, request.bundle, request.public_key)
        return pb.AddSignatureResponse(signature=_proto(made.signature), ref=made.ref)

    async def VerifyVersion(
        self, request: pb.VerifyVersionRequest, context: Any
    ) -> AsyncIterator[pb.VerifyVersionResponse]:
        """Verify, with progress."""
        last = Progress("")
        steps = self._signatures.verify_version(request.ref, request.public_key)
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, Progress):
                    last = step
                    yield pb.VerifyVersionResponse(
                        stage=step.stage, done_bytes=step.done_bytes, total_bytes=step.total_bytes
                    )
                else:
                    yield pb.VerifyVersionResponse(
                        stage="verified",
                        done_bytes=last.total_bytes,
                        total_bytes=last.total_bytes,
                        signature=_proto(step.signature),
                        ref=step.ref,
                    )

    async def ListSignatures(
        self, request: pb.ListSignaturesRequest, context: Any
    ) -> pb.ListSignaturesResponse:
        """List them."""
        found = await self._signatures.list_signatures(request.ref)
        return pb.ListSignaturesResponse(signatures=[_proto(one) for one in found])


def _proto(signature: Signature) -> pb.Signature:
    return pb.Signature(
        bundle=signature.bundle,
        key_sha256=signature.key_sha256,
        added_unix_s=signature.added_unix_s,
    )
