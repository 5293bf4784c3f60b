"""Ctrl-C for a program that goes on after it."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any


class CtrlC:
    """Owns Ctrl-C while inside; only the main thread may enter.

    Python raises KeyboardInterrupt between any two instructions: after an `except` that was meant
    for it, in a `finally`, or in a `__del__`, which swallows it. Here it is raised only inside
    `raising`, and cancels a call inside `cancelling`; at any other moment it is kept for the next
    of them, so that it neither ends the program nor goes unheard.
    """

    def __init__(self) -> None:
        """Hear nothing yet."""
        self._kept = False
        self._raises = False
        # Put from the handler, which may run in the middle of anything: this queue allows that.
        self._heard: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._before: Any = None

    def __enter__(self) -> CtrlC:
        """Take the signal."""
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Give it back."""
        signal.signal(signal.SIGINT, self._before)

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        if self._raises:
            self._raises = False  # once: whoever catches it is not hit again
            raise KeyboardInterrupt
        self._kept = True
        self._heard.put(True)

    def taken(self) -> bool:
        """Return whether a press is kept, and forget it."""
        kept, self._kept = self._kept, False
        return kept

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Raise KeyboardInterrupt on a press inside, or on entry for one that is kept.

        It is raised in the `with` statement at the latest: put the `try` around that.
        """
        self._raises = True
        try:
            if self.taken():
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    @contextlib.contextmanager
    def cancelling(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Call `cancel`, in another thread, on a press inside, or at once for one that is kept.

        The press stays kept: `taken` tells then why the call ended.
        """
        heard: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._heard = heard
        if self._kept:
            heard.put(True)

        def wait() -> None:
            if heard.get():
                cancel()

        waiting = threading.Thread(target=wait, name="ctrl-c")
        waiting.start()
        try:
            yield
        finally:
            heard.put(False)
            waiting.join()
