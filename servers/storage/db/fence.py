"""Fencing: a call that says which lock it holds changes nothing once it does not hold it any more.

M. Kleppmann, "How to do distributed locking" (2016): the store itself checks the token.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from llmos.lib.errors import FailedPrecondition
from llmos.servers.storage import caller
from llmos.servers.storage.caller import Fence
from llmos.servers.storage.db.tables_state import queue


def check(sql: Connection, fence: Fence | None) -> None:
    """Raise FailedPrecondition STALE_FENCE unless the caller's tenant holds that lock now.

    `sql` must be in the write transaction of the change: locks move in write transactions only,
    of which there is one at a time, so the answer holds until the change is committed.
    """
    if fence is None:
        return
    mine = (queue.c.tenant == caller.current().tenant) & (queue.c.name == fence.lock)
    token = sql.execute(select(func.min(queue.c.token)).where(mine)).scalar()
    if token == fence.token:
        return
    now = f"its token is {token} now" if token is not None else "nobody holds it now"
    raise FailedPrecondition(
        "STALE_FENCE",
        f"Token {fence.token} does not hold the lock {fence.lock[:100]!r} any more ({now}); "
        "nothing was changed: acquire the lock again and look at what others did meanwhile.",
    )
