"""Which block of the KV cache belongs to whom: block tables, shared prefixes, eviction. No torch.

A *block* holds BLOCK positions of one sequence. A full block is registered under the hash of all
tokens up to its end, salted, and stays findable after its sequence has ended, until its room is
needed: least recently used first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

BLOCK = 32  # positions; as in kernels.cpp


class Pages:
    """Counts references to `count` blocks. Not thread-safe: the step loop owns it."""

    def __init__(self, count: int) -> None:
        """All blocks are free."""
        self._free = deque(range(count))
        self._users = [0] * count
        self._key: list[bytes | None] = [None] * count
        self._found: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # unused, but registered
        self.marked: set[int] = set()  # by whoever likes, until they are taken anew

    def __len__(self) -> int:
        """Return how many blocks there are."""
        return len(self._users)

    @property
    def free(self) -> int:
        """Return how many blocks can be taken, registered ones that nobody uses included."""
        return len(self._free) + len(self._idle)

    def take(self) -> int | None:
        """Return a block of one's own; None when all are in use."""
        if self._free:
            block = self._free.popleft()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            self._unregister(block)
        else:
            return None
        self._users[block] = 1
        self.marked.discard(block)
        return block

    def held(self, keys: Sequence[bytes]) -> int:
        """Return how many of the first of `keys` are registered now; any thread may ask."""
        return next((i for i, key in enumerate(keys) if key not in self._found), len(keys))

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """Return the blocks registered under the first of `keys`, up to a gap, and use them."""
        blocks: list[int] = []
        for key in keys:
            block = self._found.get(key)
            if block is None:
                break
            self._idle.pop(block, None)
            self._users[block] += 1
            blocks.append(block)
        return blocks

    def register(self, block: int, key: bytes) -> None:
        """Let others find a full block; the first of two with the same content stays findable."""
        if self._key[block] is None and key not in self._found:
            self._key[block], self._found[key] = key, block

    def release(self, blocks: Sequence[int], *, forget: bool = False) -> None:
        """Use them no more. forget: their content is spoilt and must not be found again."""
        for block in reversed(blocks):  # the end of a chain is of no use without its beginning
            self._users[block] -= 1
            if forget:
                self._unregister(block)
            if self._users[block]:
                continue
            if self._key[block] is None:
                self._free.append(block)
            else:
                self._idle[block] = None

    def _unregister(self, block: int) -> None:
        key, self._key[block] = self._key[block], None
        if key is not None:
            del self._found[key]


def root(*salt: str) -> bytes:
    """Return the key before the first block. Who has another salt finds other blocks."""
    return hashlib.blake2b("\0".join(salt).encode(), digest_size=16).digest()


def chain(key: bytes, tokens: Sequence[int]) -> bytes:
    """Return the key of the block of `tokens` that follows the block of `key`."""
    return hashlib.blake2b(key + array("q", tokens).tobytes(), digest_size=16).digest()
