"""What `llmos-ctl lock run` gives its command: every call requires that the lock is still held."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import grpc

VARIABLE = "LLMOS_FENCE"  # LOCK:TOKEN


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _Fenced(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds `llmos-fence` to calls."""

    def __init__(self, fence: str) -> None:
        self._fence = ("llmos-fence", fence)

    def _call(self, continuation: Any, details: Any, request: Any) -> Any:
        names = ("method", "timeout", "credentials", "wait_for_ready", "compression")
        same: dict[str, Any] = {name: getattr(details, name, None) for name in names}
        return continuation(
            _Details(**same, metadata=[*(details.metadata or ()), self._fence]), request
        )

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._call(continuation, details, request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._call(continuation, details, request)

    def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return self._call(continuation, details, requests)

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return self._call(continuation, details, requests)


def fenced(channel: grpc.Channel) -> grpc.Channel:
    """Return the channel; with LLMOS_FENCE in the environment, one whose calls carry it."""
    fence = os.environ.get(VARIABLE)
    return grpc.intercept_channel(channel, _Fenced(fence)) if fence else channel
