"""The seam to the store of prefixes: keys and values that outlive a worker and that replicas share.

An engine that keeps keys and values in blocks under chained hashes of their tokens (see
`engine.torch.pages`) can take blocks from the store instead of computing them, and give it those
that it has computed. Blocks are bytes here; `layout` says what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

# Writes blocks one after the other into memory of exactly their size. It is called once, at once
# or not at all, in the thread that offers them.
Fill = Callable[[memoryview], None]


class Prefixes(Protocol):
    """The store, for one model version and one layout."""

    @property
    def wanted(self) -> bool:
        """Say whether blocks offered now are taken. Any thread may ask."""

    async def find(self, tenant: str, keys: Sequence[bytes], held: int = 0) -> Sequence[memoryview]:
        """Return the blocks of `keys` after the first `held`, up to one that is not in the store.

        keys: in the order of the text, from its beginning. held: how many of these the engine has
        itself; the store only learns that they are still of use. Each view is one block,
        read-only, and its memory stays while the view is held. To be awaited within the call that
        needs them. Never raises for want of a store: it is as if nothing was held.
        """

    def offer(
        self, tenant: str, keys: Sequence[bytes], depth: int, cost_s: float, fill: Fill
    ) -> None:
        """Give blocks to the store; returns at once, from any thread.

        depth: how many blocks of the text come before. cost_s: what computing them took, seconds.
        Blocks are lost without a word when the store is full, slow or away.
        """


@runtime_checkable
class SharesPrefixes(Protocol):
    """An engine that can use the store."""

    @property
    def layout(self) -> str:
        """Return all that the bytes of a block depend on beside the model's files."""

    @property
    def block_bytes(self) -> int:
        """Return the size of a block, bytes."""

    def share(self, prefixes: Prefixes) -> None:
        """Use the store from now on; called once, before serving, on the event loop."""
