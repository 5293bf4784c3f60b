"""What concerns all tenants is for those that look after the server, through a real kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from state_world import state_world

from llmos.api.storage.v1 import audit_pb2, audit_pb2_grpc, quota_pb2, quota_pb2_grpc
from llmos.lib.rpc import from_rpc_error

ACME = (("llmos-tenant", "acme"),)


@pytest.fixture
async def channel(sqlite_template: Path) -> AsyncIterator[grpc.aio.Channel]:
    with TemporaryDirectory(prefix="llmos-") as folder:
        (Path(folder) / "state.db").write_bytes(sqlite_template.read_bytes())
        async with state_world("kernel", Path(folder)) as world:
            assert world.channel is not None
            yield world.channel


async def test_a_tenant_sees_its_own_quota_and_no_audit_log(channel: grpc.aio.Channel) -> None:
    audit, quotas = audit_pb2_grpc.AuditStub(channel), quota_pb2_grpc.QuotasStub(channel)
    quota = quota_pb2.SetQuotaRequest(tenant="acme", limit_bytes=1000)
    await quotas.SetQuota(quota)
    for call in (
        audit.ListEntries(audit_pb2.ListEntriesRequest(), metadata=ACME),
        audit.GetHead(audit_pb2.GetHeadRequest(), metadata=ACME),
        audit.VerifyLog(audit_pb2.VerifyLogRequest(), metadata=ACME),
        audit.ExportLog(audit_pb2.ExportLogRequest(), metadata=ACME).read(),
        quotas.ListQuotas(quota_pb2.ListQuotasRequest(), metadata=ACME),
        quotas.GetQuota(quota_pb2.GetQuotaRequest(tenant="local"), metadata=ACME),
        quotas.SetQuota(quota, metadata=ACME),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await call
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (7, "NOT_ADMIN") and "'acme'" in error.message
    own = await quotas.GetQuota(quota_pb2.GetQuotaRequest(), metadata=ACME)
    assert (own.quota.tenant, own.quota.limit_bytes) == ("acme", 1000)
    listed = (await audit.ListEntries(audit_pb2.ListEntriesRequest())).entries
    assert [entry.action for entry in listed] == ["quota.set"]
