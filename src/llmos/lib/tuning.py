"""Settings of the interpreter that suit long-running message handlers. For `main()` only."""

from __future__ import annotations

import gc


def quiet_gc() -> None:
    """Keep the cycle collector away from what start-up made, and let it run less often.

    Every call makes tasks, futures and messages that are freed by reference counting; the default
    of one collection per 700 of them, over all that was ever imported, takes a fifth of the time.
    What others' code leaves in cycles (a statement of SQLAlchemy: 80 objects) is memory until then.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
