"""The gRPC face of documents: converts and delegates, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from llmos.api.storage.v1 import state_pb2 as pb
from llmos.api.storage.v1 import state_pb2_grpc
from llmos.lib.call import progress
from llmos.servers.storage.state.base import Documents
from llmos.servers.storage.state.checks import bad
from llmos.servers.storage.state.model import (
    Compare,
    Delete,
    Document,
    Keys,
    Operation,
    Outcome,
    Put,
    Read,
    Relation,
    Target,
    Transaction,
)


class DocumentsService(state_pb2_grpc.DocumentsServicer):
    """Serves documents."""

    def __init__(self, documents: Documents) -> None:
        """Delegate to `documents`."""
        self._documents = documents

    async def GetDocument(
        self, request: pb.GetDocumentRequest, context: Any
    ) -> pb.GetDocumentResponse:
        """Read one."""
        document, revision = await self._documents.get(request.key, request.revision)
        return pb.GetDocumentResponse(document=to_proto(document), revision=revision)

    async def ListDocuments(
        self, request: pb.ListDocumentsRequest, context: Any
    ) -> pb.ListDocumentsResponse:
        """Read a page."""
        page = await self._documents.list(
            request.prefix,
            revision=request.revision,
            keys_only=request.keys_only,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListDocumentsResponse(
            documents=[to_proto(document) for document in page.documents],
            revision=page.revision,
            next_page_token=page.next_token,
        )

    async def PutDocument(
        self, request: pb.PutDocumentRequest, context: Any
    ) -> pb.PutDocumentResponse:
        """Create or replace."""
        expected = request.if_mod_revision if request.HasField("if_mod_revision") else None
        document = await self._documents.put(_put(request), expected, request.request_id)
        return pb.PutDocumentResponse(document=to_proto(document))

    async def DeleteDocuments(
        self, request: pb.DeleteDocumentsRequest, context: Any
    ) -> pb.DeleteDocumentsResponse:
        """Delete."""
        expected = request.if_mod_revision if request.HasField("if_mod_revision") else None
        deleted, revision = await self._documents.delete(
            _keys(request), expected, request.request_id
        )
        return pb.DeleteDocumentsResponse(deleted=deleted, revision=revision)

    async def RunTransaction(
        self, request: pb.RunTransactionRequest, context: Any
    ) -> pb.RunTransactionResponse:
        """Change several at once."""
        transaction = Transaction(
            [_operation(operation) for operation in request.then],
            [_compare(compare) for compare in request.compares],
            [_operation(operation) for operation in request.otherwise],
            request.request_id,
        )
        return _outcome(await self._documents.run(transaction))

    async def WatchDocuments(
        self, request: pb.WatchDocumentsRequest, context: Any
    ) -> AsyncIterator[pb.WatchDocumentsResponse]:
        """Stream changes."""
        watch = self._documents.watch(_keys(request), request.start_revision)
        async with aclosing(watch) as steps:
            async for step in steps:
                progress(context)
                yield pb.WatchDocumentsResponse(
                    changes=[
                        pb.Change(document=to_proto(document), deleted=document.version == 0)
                        for document in step.documents
                    ],
                    revision=step.revision,
                )

    async def CompactHistory(
        self, request: pb.CompactHistoryRequest, context: Any
    ) -> pb.CompactHistoryResponse:
        """Forget history."""
        return pb.CompactHistoryResponse(compacted=await self._documents.compact(request.revision))


def to_proto(document: Document) -> pb.Document:
    """Return the message for a document."""
    return pb.Document(
        key=document.key,
        value=document.value,
        content_type=document.content_type,
        create_revision=document.create_revision,
        mod_revision=document.mod_revision,
        version=document.version,
        lease=document.lease,
    )


def _outcome(outcome: Outcome) -> pb.RunTransactionResponse:
    return pb.RunTransactionResponse(
        succeeded=outcome.succeeded,
        results=[
            pb.OperationResult(
                documents=[to_proto(document) for document in result.documents],
                deleted=result.deleted,
            )
            for result in outcome.results
        ],
        revision=outcome.revision,
    )


def _put(request: pb.PutDocumentRequest) -> Put:
    return Put(request.key, request.value, request.content_type, request.lease)


def _keys(request: pb.DeleteDocumentsRequest | pb.WatchDocumentsRequest) -> Keys:
    if request.WhichOneof("which") == "prefix":
        return Keys(request.prefix, prefix=True)
    return Keys(request.key)


def _compare(compare: pb.Compare) -> Compare:
    try:
        target, relation = Target(compare.target), Relation(compare.relation)
    except ValueError:
        raise bad(f"the compare of {compare.key[:100]!r} has no target or no relation") from None
    given = compare.value if target is Target.VALUE else compare.number
    return Compare(compare.key, target, relation, given)


def _operation(operation: pb.Operation) -> Operation:
    match operation.WhichOneof("kind"):
        case "put":
            return _put(operation.put)
        case "delete":
            return Delete(_keys(operation.delete))
        case "list":
            asked = operation.list
            keys = Keys(asked.prefix, prefix=True)
            return Read(keys, asked.page_size or 100, keys_only=asked.keys_only)
        case "get":
            return Read(Keys(operation.get.key), 1)
    raise bad("an operation does nothing")
