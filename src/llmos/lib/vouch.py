"""Vouching for a port whose calls all wait for their clients.

The kernel takes a port for hung when calls are in progress and nothing comes of them within the
stall time. Nothing can come while a client neither sends its next message nor takes what it asked
for, and only the port's own end of the calls knows that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from llmos.lib.session import Session


async def vouch(session: Session, stalls: Callable[[], Mapping[str, float]]) -> None:
    """Say that we are alive while each served call waits for its client; for ever.

    stalls: stall times, seconds, of the services that have one. A process that is stopped, or
    whose event loop is stuck, says nothing; one with a call that waits for itself does not either.
    """
    while True:
        times = stalls()
        await asyncio.sleep(min(times.values(), default=4.0) / 4)
        calls = [stream for stream in session.servers() if stream.service() in times]
        if calls and all(stream.waits_for_client() for stream in calls):
            session.progress()
