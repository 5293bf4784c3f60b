"""Small state of the gateway's API objects, in storage's documents: each tenant has its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
from starlette.requests import Request

from llmos.api.storage.v1 import state_pb2 as pb
from llmos.api.storage.v1 import state_pb2_grpc
from llmos.lib.errors import LLMOSError, NotFound
from llmos.lib.rpc import from_rpc_error
from llmos.servers.gateway import calls

Json = dict[str, Any]
_CHUNK = 1 << 20  # of storage's largest document
_TIMEOUT_S = 30.0
Metadata = tuple[tuple[str, str], ...]


def metadata_of(request: Request) -> Metadata:
    """Return in whose name a request's documents are kept."""
    return calls.of(request, _TIMEOUT_S).metadata


class Documents:
    """Objects as JSON, and files cut into documents. All methods raise LLMOSError only."""

    def __init__(self, channel: Callable[[], grpc.aio.Channel]) -> None:
        """Keep them over `channel`, which is asked for at each call."""
        self._channel = channel

    async def put(self, key: str, value: Json, who: Metadata) -> None:
        """Create or replace an object."""
        await self._put(key, json.dumps(value).encode(), who)

    async def get(self, key: str, who: Metadata) -> Json | None:
        """Return an object, or None."""
        try:
            reply = await self._call("GetDocument", pb.GetDocumentRequest(key=key), who)
        except NotFound:
            return None
        value: Json = json.loads(reply.document.value)
        return value

    async def list(self, prefix: str, who: Metadata) -> list[Json]:
        """Return all objects below a prefix, by key."""
        request = pb.ListDocumentsRequest(prefix=prefix, page_size=1000)
        found: list[Json] = []
        while True:
            page = await self._call("ListDocuments", request, who)
            found += [json.loads(document.value) for document in page.documents]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def delete(self, prefix: str, who: Metadata) -> None:
        """Delete everything below a prefix."""
        await self._call("DeleteDocuments", pb.DeleteDocumentsRequest(prefix=prefix), who)

    async def delete_one(self, key: str, who: Metadata) -> None:
        """Delete an object."""
        await self._call("DeleteDocuments", pb.DeleteDocumentsRequest(key=key), who)

    async def put_file(self, prefix: str, content: bytes, who: Metadata) -> None:
        """Keep a file's bytes; what a failed call leaves is deleted again."""
        try:
            for at in range(0, len(content), _CHUNK):
                part = content[at : at + _CHUNK]
                await self._put(f"{prefix}{at // _CHUNK:06}", part, who)
        except LLMOSError:
            await self.delete(prefix, who)
            raise

    async def get_file(self, prefix: str, who: Metadata) -> bytes:
        """Return a file's bytes."""
        request = pb.ListDocumentsRequest(prefix=prefix, page_size=1000)
        parts: list[bytes] = []
        while True:
            page = await self._call("ListDocuments", request, who)
            parts += [document.value for document in page.documents]
            if not page.next_page_token:
                return b"".join(parts)
            request.page_token = page.next_page_token

    async def _put(self, key: str, value: bytes, who: Metadata) -> None:
        await self._call("PutDocument", pb.PutDocumentRequest(key=key, value=value), who)

    async def _call(self, method: str, request: Any, who: Metadata) -> Any:
        stub = state_pb2_grpc.DocumentsStub(self._channel())
        try:
            return await getattr(stub, method)(request, timeout=_TIMEOUT_S, metadata=who)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from None
