"""Fencing and tenants: what the metadata of a call decides, for every service of the server."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import pytest
from remote_state import RemoteDocuments, own
from state_world import SmallState

from llmos.api.storage.v1 import audit_pb2, audit_pb2_grpc, locks_pb2, quota_pb2, quota_pb2_grpc
from llmos.lib.errors import FailedPrecondition, InvalidArgument, LLMOSError
from llmos.servers.storage.binding import parse
from llmos.servers.storage.caller import Caller, Fence, become, restore
from llmos.servers.storage.state.model import Keys, Put, Read, Transaction

LONG = 60_000


async def test_the_holder_of_an_old_token_changes_nothing(served: SmallState) -> None:
    state, plain = served, served.documents
    assert state.channel is not None
    for lease in ("a", "b"):
        await state.leases.grant(LONG, lease)
    old = await state.locks.acquire("app:main", "a")
    fenced = RemoteDocuments(state.channel, [("llmos-fence", f"app:main:{old}")])
    await fenced.put(Put("k", b"by a"))
    await state.locks.release("app:main", old)
    changes: list[Callable[[], Awaitable[object]]] = [
        lambda: fenced.put(Put("k", b"late")),
        lambda: fenced.delete(Keys("k")),
        lambda: fenced.run(Transaction([Put("k", b"late")])),
        lambda: fenced.run(Transaction([Read(Keys("k"))])),
        fenced.compact,
    ]
    before = (await plain.list()).revision
    for _ in range(2):  # while nobody holds it, and while somebody else does
        for change in changes:
            with pytest.raises(FailedPrecondition) as caught:
                await change()
            assert caught.value.reason == "STALE_FENCE"
        new = await state.locks.acquire("app:main", "b")
    assert new > old
    assert (await plain.get("k"))[0].value == b"by a"
    await RemoteDocuments(state.channel, [("llmos-fence", f"app:main:{new}")]).put(
        Put("k", b"by b")
    )
    assert (await plain.list()).revision == before + 2  # the lock's request and this


async def test_every_service_checks_the_fence(served: SmallState) -> None:
    state = served
    stale = [("llmos-fence", "nobody:7")]
    assert state.channel is not None
    leases = state.leases.stub  # type: ignore[attr-defined]
    locks = state.locks.stub  # type: ignore[attr-defined]
    quotas = quota_pb2_grpc.QuotasStub(state.channel)
    lease = (await state.leases.grant(LONG)).id
    for call in (
        leases.GrantLease(locks_pb2.GrantLeaseRequest(ttl_ms=1000), metadata=stale),
        leases.RevokeLease(locks_pb2.RevokeLeaseRequest(id=lease), metadata=stale),
        locks.AcquireLock(locks_pb2.AcquireLockRequest(name="l", lease=lease), metadata=stale),
        locks.ReleaseLock(locks_pb2.ReleaseLockRequest(name="l", token=1), metadata=stale),
        quotas.SetQuota(quota_pb2.SetQuotaRequest(tenant="t", limit_bytes=1), metadata=stale),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            await own(call)
        assert caught.value.reason == "STALE_FENCE"
    assert len(await state.leases.leases()) == 1


async def test_bad_fences(served: SmallState) -> None:
    assert served.channel is not None
    for text in ("", "lock", "lock:", ":5", "lock:x", "lock:-1", "lock:99999999999999999999"):
        with pytest.raises(InvalidArgument) as caught:
            await RemoteDocuments(served.channel, [("llmos-fence", text)]).put(Put("k", b""))
        assert caught.value.reason == "BAD_FENCE"
    assert parse("a:b:5") == Fence("a:b", 5)


async def test_tenants_do_not_see_one_another(inside: SmallState) -> None:
    state = inside
    await state.documents.put(Put("k", b"mine"))
    await state.leases.grant(LONG, "l")
    token = await state.locks.acquire("lock", "l")
    as_other = become(Caller("other"))
    try:
        assert not (await state.documents.list()).documents
        assert await state.leases.leases() == []
        assert (await state.locks.lock("lock")).holder is None
        with pytest.raises(LLMOSError):
            await state.locks.acquire("lock", "l")
        await state.documents.delete(Keys("", prefix=True))
        await state.leases.grant(LONG, "l")
        assert await state.locks.acquire("lock", "l") > token
        await state.documents.put(Put("k", hashlib.sha256(b"theirs").digest()))
    finally:
        restore(as_other)
    assert (await state.documents.get("k"))[0].value == b"mine"


async def test_numbers_and_texts_that_no_database_takes(served: SmallState) -> None:
    most = 2**64 - 1
    documents = served.documents
    assert served.channel is not None
    await served.leases.grant(LONG, "l")
    for call, reason in (
        (documents.get("k", most), "FUTURE_REVISION"),
        (documents.compact(most), "FUTURE_REVISION"),
        (documents.put(Put("k", b""), most), "CONFLICT"),
        (documents.put(Put("k", b"", lease="\0")), "NO_SUCH_LEASE"),
        (documents.put(Put("k", b"", "\0")), "TOO_LARGE"),
        (documents.put(Put("k", b""), None, "\0"), "BAD_REQUEST_ID"),
        (documents.run(Transaction([Read(Keys("", True), 2**31)])), "BAD_TRANSACTION"),
        (served.locks.acquire("l", "\0"), "NO_SUCH_LEASE"),
        (served.leases.renew("\0"), "NO_SUCH_LEASE"),
        (served.leases.lease("\0"), "NO_SUCH_LEASE"),
        (served.leases.grant(most), "BAD_LEASE"),
    ):
        with pytest.raises(LLMOSError) as caught:
            await call
        assert caught.value.reason == reason
    assert await served.leases.revoke("\0") is False
    assert await served.locks.release("l", most) is False
    assert await served.locks.acquire("l", "l", wait_ms=most)
    watch = documents.watch(Keys("", True), most)
    assert not (await anext(watch)).documents
    await documents.put(Put("k", b""))
    assert not (await anext(watch)).documents  # a sign of life
    await watch.aclose()
    log = audit_pb2_grpc.AuditStub(served.channel)
    asked = audit_pb2.ListEntriesRequest(after_seq=most, actor="\0", action="\0.", subject="\0")
    assert not (await own(log.ListEntries(asked))).entries
    assert not [x async for x in log.ExportLog(audit_pb2.ExportLogRequest(after_seq=most))]
    quotas = quota_pb2_grpc.QuotasStub(served.channel)
    for tenant, limit, reason in (("\0", 1, "BAD_TENANT"), ("t", most, "BAD_QUOTA")):
        with pytest.raises(InvalidArgument) as bad:
            await own(quotas.SetQuota(quota_pb2.SetQuotaRequest(tenant=tenant, limit_bytes=limit)))
        assert bad.value.reason == reason
    with pytest.raises(InvalidArgument) as bad:
        await own(log.VerifyLog(audit_pb2.VerifyLogRequest(heads=["x"])))
    assert bad.value.reason == "BAD_HEAD"
    assert (await own(log.VerifyLog(audit_pb2.VerifyLogRequest()))).seq > 0
