"""Single keys of a terminal, also those that send several characters."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_NAMES = {"\t": "tab", "\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down"}


@contextlib.contextmanager
def raw() -> Iterator[Callable[[float], str]]:
    """Give a function that waits for a key so many seconds; "" when none was hit."""
    if not sys.stdin.isatty():

        def sleep(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield sleep
        return
    import os
    import select
    import termios
    import tty

    number = sys.stdin.fileno()
    kept = termios.tcgetattr(number)

    waiting = ""  # what was typed faster than it was asked for

    def key(seconds: float) -> str:
        nonlocal waiting
        if not waiting:
            if not select.select([number], [], [], seconds)[0]:
                return ""
            waiting = os.read(number, 1024).decode(errors="replace")
        if not waiting:
            return "q"  # the terminal hung up
        first = next((text for text in _NAMES if waiting.startswith(text)), waiting[0])
        waiting = waiting[len(first) :]
        return _NAMES.get(first, first.lower())

    tty.setcbreak(number)
    try:
        yield key
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, kept)
