"""Words of the prefix store: where keys mean the same, and blocks that go together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from llmos.lib.errors import InvalidArgument

MAX_KEYS = 8192
MAX_NAME = 512  # bytes
_KEY = range(16, 65)


class Space(NamedTuple):
    """Where keys mean the same. tenant: whose text it is."""

    model: str
    layout: str
    tenant: str


@dataclass(eq=False)
class Run:
    """Blocks of one text that were put together, and stay and go together.

    buffer: its bytes in memory, "" when it has none; on_disk: they are in a file too. worth: see
    `worth.Worth`. checksum: CRC-32 of the file.
    """

    id: int
    space: Space
    keys: list[bytes]
    block_bytes: int
    depth: int
    cost_s: float
    size: int  # of the buffer, bytes
    buffer: str = ""
    token: bytes = b""
    on_disk: bool = False
    checksum: int = 0
    worth: tuple[float, int, int] = (0.0, 0, 0)
    used: float = 0.0  # wall clock, s: the order after a restart
    gone: bool = False  # forgotten while somebody was still moving it


@dataclass
class Shelf:
    """What is known of one space. `rate`: mean seconds of computing per byte."""

    space: Space
    block_bytes: int = 0
    blocks: dict[bytes, tuple[Run, int]] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0
    used: float = 0.0  # on the store's clock, s
    seconds: float = 0.0  # computing that the blocks put so far took, where that is known
    bytes: int = 0  # of those

    @property
    def rate(self) -> float:
        """Return the mean seconds of computing per byte; 0 when nobody has said."""
        return self.seconds / self.bytes if self.bytes else 0.0


def check_space(space: Space) -> None:
    """Raise InvalidArgument BAD_SPACE."""
    for what, name in (("model", space.model), ("layout", space.layout)):
        if not 0 < len(name.encode()) <= MAX_NAME:
            raise InvalidArgument(
                "BAD_SPACE", f"The space's {what} must have 1 to {MAX_NAME} bytes; name it."
            )


def check_keys(keys: list[bytes], held: int = 0) -> None:
    """Raise InvalidArgument BAD_KEYS."""
    if not 0 < len(keys) <= MAX_KEYS:
        raise InvalidArgument(
            "BAD_KEYS", f"Give 1 to {MAX_KEYS:,} keys of blocks at a time, not {len(keys):,}."
        )
    size = len(keys[0])
    if size not in _KEY or any(len(key) != size for key in keys):
        raise InvalidArgument(
            "BAD_KEYS",
            f"Keys are hashes of one length from {_KEY.start} to {_KEY.stop - 1} bytes.",
        )
    if held > len(keys):
        raise InvalidArgument(
            "BAD_KEYS", f"{held:,} of {len(keys):,} keys cannot be held; count from the first key."
        )
