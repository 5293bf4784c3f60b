"""The Events service: streams of the board's subscriptions."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from llmos.api.kernel.v1 import events_pb2, events_pb2_grpc
from llmos.kernel.core.board import Board
from llmos.lib import call


class EventsService(events_pb2_grpc.EventsServicer):
    """See events.proto."""

    def __init__(self) -> None:
        """Start with an empty board."""
        self._board = Board()

    async def Publish(self, request: Any, context: Any) -> events_pb2.PublishResponse:
        count = self._board.publish(
            request.topic, request.payload, call.caller(context), time.monotonic()
        )
        return events_pb2.PublishResponse(receivers=count)

    async def Subscribe(
        self, request: Any, context: Any
    ) -> AsyncIterator[events_pb2.SubscribeResponse]:
        news = asyncio.Event()
        subscription = self._board.subscribe(request, news.set)
        # Headers tell the subscriber that from here on nothing is missed.
        await context.send_initial_metadata(())
        try:
            while True:
                news.clear()
                while (event := subscription.take(time.monotonic())) is not None:
                    yield event
                due = subscription.next_due()
                wait = None if due is None else max(0.0, due - time.monotonic())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), wait)
        finally:
            self._board.leave(subscription, time.monotonic())

    async def Acknowledge(self, request: Any, context: Any) -> events_pb2.AcknowledgeResponse:
        self._board.acknowledge(request.name, list(request.ids))
        return events_pb2.AcknowledgeResponse()
