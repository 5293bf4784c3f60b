"""Telling others what has happened, as events of the kernel; docs/events.md lists the topics."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from typing import Protocol

import grpc

from llmos.api.kernel.v1 import events_pb2, events_pb2_grpc
from llmos.lib.call import background
from llmos.lib.errors import LLMOSError
from llmos.lib.rpc import from_exception

MAX_WAITING = 100
_LIMIT_S = 10.0  # of one event: a kernel that restarts is back within seconds
Fact = str | int | float | bool | list[str]
log = logging.getLogger(__name__)


class Tell(Protocol):
    """What code takes that reports: a Publisher's `tell`."""

    def __call__(self, topic: str, **facts: Fact) -> None:
        """Report; returns at once and never fails."""


def nobody(topic: str, **facts: Fact) -> None:
    """Be the `Tell` of code that runs alone."""


class Publisher:
    """Publishes in the background, in order: telling never waits and never fails.

    At most 100 events wait for a kernel that is away; the oldest go first. Belongs to one event
    loop.
    """

    def __init__(self, channel: grpc.aio.Channel | None = None) -> None:
        """Publish on a port's channel; without one, events wait for `connect`."""
        self._stub = events_pb2_grpc.EventsStub(channel) if channel is not None else None
        self._waiting: deque[events_pb2.PublishRequest] = deque(maxlen=MAX_WAITING)
        self._sending: asyncio.Task[None] | None = None

    def connect(self, channel: grpc.aio.Channel | None) -> None:
        """Publish on `channel` from now on; None = wait for the next one."""
        self._stub = events_pb2_grpc.EventsStub(channel) if channel is not None else None
        self._wake()

    def tell(self, topic: str, **facts: Fact) -> None:
        """Publish `facts` as a JSON object, with the Unix time as `at`."""
        payload = json.dumps({"at": round(time.time(), 3), **facts}, ensure_ascii=False).encode()
        self._waiting.append(events_pb2.PublishRequest(topic=topic, payload=payload))
        self._wake()

    def _wake(self) -> None:
        if self._waiting and self._stub is not None and self._sending is None:
            # Not in the task of a call: events outlive it, and are not to be billed to it.
            self._sending = background(self._send())

    async def _send(self) -> None:
        try:
            while self._waiting and self._stub is not None:
                request = self._waiting[0]
                try:
                    await self._stub.Publish(request, timeout=_LIMIT_S)
                except (grpc.RpcError, LLMOSError) as exc:
                    cause = from_exception(exc).message
                    log.info("event lost", extra={"topic": request.topic, "cause": cause})
                if self._waiting and self._waiting[0] is request:
                    self._waiting.popleft()
        finally:
            self._sending = None
