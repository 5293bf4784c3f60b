"""Small state's interfaces over gRPC, so that one suite tests the core and the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from typing import Any, TypeVar

import grpc

from llmos.api.storage.v1 import locks_pb2, locks_pb2_grpc, state_pb2_grpc
from llmos.api.storage.v1 import state_pb2 as pb
from llmos.lib.rpc import from_rpc_error
from llmos.servers.storage.state.base import Documents, Leases, Locks
from llmos.servers.storage.state.model import (
    Attached,
    Changes,
    Delete,
    Document,
    DocumentPage,
    Keys,
    Lease,
    Lock,
    Operation,
    Outcome,
    Place,
    Put,
    Read,
    Result,
    Transaction,
)

T = TypeVar("T")
Metadata = Sequence[tuple[str, str]]


async def own(call: Awaitable[T]) -> T:
    """Await a call; its error as one of ours."""
    try:
        return await call
    except grpc.aio.AioRpcError as exc:
        raise from_rpc_error(exc) from exc


class RemoteDocuments(Documents):
    """Calls the Documents service."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata = ()) -> None:
        self.stub = state_pb2_grpc.DocumentsStub(channel)
        self._metadata: Any = metadata

    async def get(self, key: str, revision: int = 0) -> tuple[Document, int]:
        request = pb.GetDocumentRequest(key=key, revision=revision)
        answer = await own(self.stub.GetDocument(request))
        return document(answer.document), answer.revision

    async def list(
        self,
        prefix: str = "",
        *,
        revision: int = 0,
        keys_only: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> DocumentPage:
        request = pb.ListDocumentsRequest(
            prefix=prefix,
            revision=revision,
            keys_only=keys_only,
            page_size=page_size,
            page_token=page_token,
        )
        answer = await own(self.stub.ListDocuments(request))
        return DocumentPage(
            [document(d) for d in answer.documents], answer.revision, answer.next_page_token
        )

    async def put(
        self, put: Put, if_mod_revision: int | None = None, request_id: str = ""
    ) -> Document:
        request = _put(put)
        request.request_id = request_id
        if if_mod_revision is not None:
            request.if_mod_revision = if_mod_revision
        answer = await own(self.stub.PutDocument(request, metadata=self._metadata))
        return document(answer.document)

    async def delete(
        self, keys: Keys, if_mod_revision: int | None = None, request_id: str = ""
    ) -> tuple[int, int]:
        request = _delete(keys)
        request.request_id = request_id
        if if_mod_revision is not None:
            request.if_mod_revision = if_mod_revision
        answer = await own(self.stub.DeleteDocuments(request, metadata=self._metadata))
        return answer.deleted, answer.revision

    async def run(self, transaction: Transaction) -> Outcome:
        request = pb.RunTransactionRequest(
            compares=[
                pb.Compare(
                    key=c.key,
                    target=pb.CompareTarget.ValueType(c.target),
                    relation=pb.CompareRelation.ValueType(c.relation),
                    number=c.given if isinstance(c.given, int) else 0,
                    value=c.given if isinstance(c.given, bytes) else b"",
                )
                for c in transaction.compares
            ],
            then=_operations(transaction.then),
            otherwise=_operations(transaction.otherwise),
            request_id=transaction.request_id,
        )
        answer = await own(self.stub.RunTransaction(request, metadata=self._metadata))
        results = [
            Result(tuple(document(d) for d in result.documents), result.deleted)
            for result in answer.results
        ]
        return Outcome(answer.succeeded, results, answer.revision)

    async def watch(self, keys: Keys, start_revision: int = 0) -> AsyncGenerator[Changes, None]:
        request = pb.WatchDocumentsRequest(start_revision=start_revision)
        if keys.prefix:
            request.prefix = keys.key
        else:
            request.key = keys.key
        call = self.stub.WatchDocuments(request)
        try:
            async for step in call:
                documents = [document(change.document) for change in step.changes]
                deleted = [change.deleted for change in step.changes]
                assert deleted == [d.version == 0 for d in documents]
                yield Changes(documents, step.revision)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()

    async def compact(self, revision: int = 0) -> int:
        request = pb.CompactHistoryRequest(revision=revision)
        return (await own(self.stub.CompactHistory(request, metadata=self._metadata))).compacted


class RemoteLeases(Leases):
    """Calls the Leases service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = locks_pb2_grpc.LeasesStub(channel)

    async def grant(self, ttl_ms: int, id: str = "", owner: str = "") -> Lease:
        request = locks_pb2.GrantLeaseRequest(id=id, ttl_ms=ttl_ms, owner=owner)
        return lease((await own(self.stub.GrantLease(request))).lease)

    async def renew(self, id: str) -> Lease:
        return lease((await own(self.stub.RenewLease(locks_pb2.RenewLeaseRequest(id=id)))).lease)

    async def revoke(self, id: str) -> bool:
        return (await own(self.stub.RevokeLease(locks_pb2.RevokeLeaseRequest(id=id)))).existed

    async def lease(self, id: str) -> Attached:
        answer = await own(self.stub.GetLease(locks_pb2.GetLeaseRequest(id=id)))
        return Attached(lease(answer.lease), list(answer.documents), list(answer.locks))

    async def leases(self) -> Sequence[Lease]:
        answer = await own(self.stub.ListLeases(locks_pb2.ListLeasesRequest()))
        return [lease(found) for found in answer.leases]


class RemoteLocks(Locks):
    """Calls the Locks service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = locks_pb2_grpc.LocksStub(channel)

    async def acquire(
        self, name: str, lease: str, *, wait_ms: int = 0, owner: str = "", request_id: str = ""
    ) -> int:
        request = locks_pb2.AcquireLockRequest(
            name=name, lease=lease, wait_ms=wait_ms, owner=owner, request_id=request_id
        )
        return (await own(self.stub.AcquireLock(request))).token

    async def release(self, name: str, token: int) -> bool:
        request = locks_pb2.ReleaseLockRequest(name=name, token=token)
        return (await own(self.stub.ReleaseLock(request))).released

    async def lock(self, name: str) -> Lock:
        return lock((await own(self.stub.GetLock(locks_pb2.GetLockRequest(name=name)))).lock)

    async def locks(self, prefix: str = "") -> Sequence[Lock]:
        answer = await own(self.stub.ListLocks(locks_pb2.ListLocksRequest(prefix=prefix)))
        return [lock(found) for found in answer.locks]


def document(message: pb.Document) -> Document:
    return Document(
        message.key,
        message.value,
        message.content_type,
        message.lease,
        message.create_revision,
        message.mod_revision,
        message.version,
    )


def lease(message: locks_pb2.Lease) -> Lease:
    return Lease(message.id, message.ttl_ms, message.left_ms, message.owner)


def lock(message: locks_pb2.Lock) -> Lock:
    holder = place(message.holder) if message.HasField("holder") else None
    return Lock(message.name, holder, tuple(place(p) for p in message.waiting))


def place(message: locks_pb2.LockPlace) -> Place:
    return Place(message.token, message.lease, message.owner, message.asked_unix_s)


def _put(put: Put) -> pb.PutDocumentRequest:
    return pb.PutDocumentRequest(
        key=put.key, value=put.value, content_type=put.content_type, lease=put.lease
    )


def _delete(keys: Keys) -> pb.DeleteDocumentsRequest:
    if keys.prefix:
        return pb.DeleteDocumentsRequest(prefix=keys.key)
    return pb.DeleteDocumentsRequest(key=keys.key)


def _operations(operations: Iterable[Operation]) -> list[pb.Operation]:
    messages = []
    for operation in operations:
        match operation:
            case Put():
                messages.append(pb.Operation(put=_put(operation)))
            case Delete(keys):
                messages.append(pb.Operation(delete=_delete(keys)))
            case Read(Keys(key, prefix=True), limit, keys_only):
                asked = pb.ListDocumentsRequest(prefix=key, page_size=limit, keys_only=keys_only)
                messages.append(pb.Operation(list=asked))
            case Read(keys):
                messages.append(pb.Operation(get=pb.GetDocumentRequest(key=keys.key)))
    return messages
