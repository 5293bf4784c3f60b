"""A clock that tests move, and a buffer store under it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.shm import Directory


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_store(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., BufferStore]]:
    """Open the store of one directory again and again, as restarted servers would."""
    opened: list[BufferStore] = []

    def make(**limits: Any) -> BufferStore:
        if opened:
            opened.pop().close()
        directory = Directory(tmp_path / "shm", tmp_path)
        limits.setdefault("budget", 1 << 20)
        opened.append(BufferStore(directory, clock=clock, **limits))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(make_store: Callable[..., BufferStore]) -> BufferStore:
    return make_store()
