"""Who may use the API: keys that storage keeps; their tenants' limits, which the kernel keeps."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Iterable

import grpc
from starlette.requests import HTTPConnection

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.api.storage.v1 import state_pb2, state_pb2_grpc
from llmos.lib.apikeys import PREFIX, ApiKey, digest, from_json
from llmos.lib.errors import InvalidArgument, LLMOSError, Unauthenticated, Unavailable
from llmos.lib.rpc import from_rpc_error

_EVERY_S = 5.0  # a revoked key works no longer than this
_TIMEOUT_S = 4.0
log = logging.getLogger(__name__)


class Keys:
    """All keys by their hash. Refreshed for as long as `run` runs; the last known ones stay."""

    def __init__(self) -> None:
        """Know nothing yet: every request is asked to come again."""
        self._known: dict[str, ApiKey] | None = None

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """Know these keys and no others."""
        self._known = {key.sha256: key for key in keys}

    def find(self, connection: HTTPConnection) -> ApiKey:
        """Return the key that a request brings. Raises Unauthenticated NO_KEY, BAD_KEY."""
        if self._known is None:
            raise Unavailable("KEYS_UNKNOWN", "The keys are not read from storage yet; try again.")
        scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            secret = connection.headers.get("x-api-key", "")
        if not secret:
            raise Unauthenticated(
                "NO_KEY", "This gateway wants a key: send `Authorization: Bearer KEY`."
            )
        hashed = digest(secret.strip())
        key = self._known.get(hashed)
        # The look-up is by hash, so its time tells nothing about keys; this compares all of it.
        if key is None or not hmac.compare_digest(key.sha256, hashed):
            raise Unauthenticated("BAD_KEY", "The key is not known, or was revoked.")
        if key.expires_unix_s and key.expires_unix_s < time.time():
            raise Unauthenticated("BAD_KEY", "The key has expired; ask for a new one.")
        return key

    async def run(self, channel: Callable[[str], grpc.aio.Channel]) -> None:
        """Read the keys again and again, and tell the kernel the tenants' limits; for ever."""
        said = ""
        while True:
            try:
                keys = await _read(channel("storage"))
                self.replace(keys)
                await _limit(channel("kernel"), keys)
                said = ""
            except LLMOSError as exc:
                if str(exc) != said:  # once, not every few seconds
                    log.warning("API keys are not refreshed: %s", exc)
                said = str(exc)
            await asyncio.sleep(_EVERY_S if self._known is not None else 0.5)


async def _read(channel: grpc.aio.Channel) -> list[ApiKey]:
    stub = state_pb2_grpc.DocumentsStub(channel)
    keys: list[ApiKey] = []
    request = state_pb2.ListDocumentsRequest(prefix=PREFIX, page_size=1000)
    while True:
        try:
            page = await stub.ListDocuments(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from None
        for document in page.documents:
            try:
                keys.append(from_json(document.value))
            except InvalidArgument as exc:  # the others still count
                log.warning("%s is skipped: %s", document.key, exc)
        if not page.next_page_token:
            return keys
        request.page_token = page.next_page_token


async def _limit(channel: grpc.aio.Channel, keys: Iterable[ApiKey]) -> None:
    limits: dict[str, admin_pb2.TenantLimits] = {}
    for key in keys:
        tenant = limits.setdefault(key.tenant, admin_pb2.TenantLimits(tenant=key.tenant))
        for name in ("weight", "max_calls", "calls_per_s", "cost_per_s"):
            if value := getattr(key, name):
                setattr(tenant, name, value)
    if not limits:
        return
    request = admin_pb2.UpdateLimitsRequest(tenants=limits.values())
    try:
        await admin_pb2_grpc.AdminStub(channel).UpdateLimits(request, timeout=_TIMEOUT_S)
    except grpc.RpcError as exc:
        raise from_rpc_error(exc) from None
