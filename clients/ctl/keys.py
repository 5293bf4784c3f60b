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

    def key(seconds: float) -> str:
        if not select.select([number], [], [], seconds)[0]:
            return ""
        # An arrow key's characters come at once, so one read gets them all.
        text = os.read(number, 8).decode(errors="replace")
        return _NAMES.get(text, text[:1].lower()) or "q"  # "q": the terminal hung up

    tty.setcbreak(number)
    try:
        yield key
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, kept)
