"""Progress on stderr: a spinner or bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


def note(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner with `text` while inside; yields what changes the text."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status(text) as spinner:
        yield lambda new: spinner.update(new)


@contextlib.contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar of bytes while inside; yields what is told (stage, done, total or 0)."""
    if not sys.stderr.isatty():
        last = ""

        def line(stage: str, done: int, total: int) -> None:
            nonlocal last
            if stage != last:
                note(f"  {stage}")
                last = stage

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    with Progress(*columns, TransferSpeedColumn(), console=console, transient=True) as shown:
        task = shown.add_task("starting", total=None)
        yield lambda stage, done, total: shown.update(
            task, description=stage, completed=done, total=total or None
        )


@contextlib.contextmanager
def count_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar of things called `unit` while inside, on a terminal; yields what is told."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(unit, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
