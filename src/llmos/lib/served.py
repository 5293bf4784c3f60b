"""A log line about every call over a port that took long: what `llmos-ctl trace` draws."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos.api.kernel.v1 import port_pb2 as pb

log = logging.getLogger(__name__)

SLOW_S = 0.1  # quicker calls are no news, and a line costs more than some of them


def note(opened: pb.Open, began: float, first: float, status: pb.Status | None) -> None:
    """Log a call that has ended, if it took long; to be called in its task, whose id is logged.

    began, first: `time.monotonic()` when its handler began, and at its first reply (0: none of a
    stream). status: None for OK.
    """
    seconds = time.monotonic() - began
    waited = opened.waited_us / 1e6
    if seconds + waited < SLOW_S:
        return
    asked = (entry.value for entry in opened.metadata if entry.key == "x-request-id")
    request = next(asked, b"").decode("utf-8", "replace")[:200]
    log.info(
        "served",
        extra={
            "method": opened.method,
            "code": status.code if status is not None else 0,
            "waited_s": round(waited, 4),
            "seconds": round(seconds, 4),
            **({"key": opened.key} if opened.key else {}),
            **({"first_reply_s": round(first - began, 4)} if first else {}),
            **({"request": request} if request else {}),
        },
    )
