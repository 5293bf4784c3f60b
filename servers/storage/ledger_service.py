"""The gRPC face of the audit log and the quotas: converts and delegates, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from llmos.api.storage.v1 import audit_pb2, audit_pb2_grpc, quota_pb2, quota_pb2_grpc
from llmos.lib.chain import Entry, Head
from llmos.servers.storage.db.quota import Limits
from llmos.servers.storage.ledger import Allowance, AuditLog, QuotaBook


class AuditService(audit_pb2_grpc.AuditServicer):
    """Serves the audit log."""

    def __init__(self, log: AuditLog) -> None:
        """Delegate to `log`."""
        self._log = log

    async def ListEntries(
        self, request: audit_pb2.ListEntriesRequest, context: Any
    ) -> audit_pb2.ListEntriesResponse:
        """List a page."""
        entries, more = await self._log.entries(
            request.after_seq,
            request.page_size,
            actor=request.actor,
            action=request.action,
            subject=request.subject,
            newest=request.newest,
        )
        return audit_pb2.ListEntriesResponse(entries=map(_entry, entries), more=more)

    async def ExportLog(
        self, request: audit_pb2.ExportLogRequest, context: Any
    ) -> AsyncIterator[audit_pb2.ExportLogResponse]:
        """Stream the log."""
        async with aclosing(self._log.export(request.after_seq)) as pieces:
            async for entries, total in pieces:
                text = "".join(f"{entry.line()}\n" for entry in entries)
                yield audit_pb2.ExportLogResponse(
                    data=text.encode(), done=entries[-1].seq, total=total
                )

    async def GetHead(
        self, request: audit_pb2.GetHeadRequest, context: Any
    ) -> audit_pb2.GetHeadResponse:
        """Tell the end."""
        head = await self._log.head()
        return audit_pb2.GetHeadResponse(seq=head.seq, hash=head.hash)

    async def VerifyLog(
        self, request: audit_pb2.VerifyLogRequest, context: Any
    ) -> audit_pb2.VerifyLogResponse:
        """Check all of it."""
        head = await self._log.verify([Head.parse(text) for text in request.heads])
        return audit_pb2.VerifyLogResponse(seq=head.seq, hash=head.hash)


class QuotasService(quota_pb2_grpc.QuotasServicer):
    """Serves the quotas."""

    def __init__(self, book: QuotaBook) -> None:
        """Delegate to `book`."""
        self._book = book

    async def GetQuota(
        self, request: quota_pb2.GetQuotaRequest, context: Any
    ) -> quota_pb2.GetQuotaResponse:
        """Tell a tenant's."""
        return quota_pb2.GetQuotaResponse(quota=_quota(await self._book.get(request.tenant)))

    async def ListQuotas(
        self, request: quota_pb2.ListQuotasRequest, context: Any
    ) -> quota_pb2.ListQuotasResponse:
        """Tell all."""
        return quota_pb2.ListQuotasResponse(quotas=map(_quota, await self._book.list()))

    async def SetQuota(
        self, request: quota_pb2.SetQuotaRequest, context: Any
    ) -> quota_pb2.SetQuotaResponse:
        """Set limits."""
        limits = None if request.reset else Limits(request.limit_bytes, request.limit_items)
        found = await self._book.set(request.tenant, limits)
        return quota_pb2.SetQuotaResponse(quota=_quota(found))


def _entry(entry: Entry) -> audit_pb2.AuditEntry:
    return audit_pb2.AuditEntry(
        seq=entry.seq,
        at_unix_ms=entry.at_ms,
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        detail_json=entry.detail,
        previous=entry.previous,
        hash=entry.hash,
    )


def _quota(found: Allowance) -> quota_pb2.Quota:
    return quota_pb2.Quota(
        tenant=found.tenant,
        limit_bytes=found.limits.bytes,
        limit_items=found.limits.items,
        by_default=not found.own,
        used_bytes=found.used.bytes,
        used_items=found.used.items,
        kinds=[
            quota_pb2.UsageByKind(kind=kind, bytes=used.bytes, items=used.items)
            for kind, used in found.kinds.items()
        ],
    )
