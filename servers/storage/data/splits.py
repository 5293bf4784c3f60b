"""Splits: which row goes where, by its content and the seed alone."""

from __future__ import annotations

import hashlib
import itertools
import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from llmos.servers.storage.data.content import digests
from llmos.servers.storage.data.faults import bad_option
from llmos.servers.storage.data.model import Splitting
from llmos.servers.storage.data.seen import Scratch, Strata
from llmos.servers.storage.names import short

ALL = "all"  # the split of data that is not split
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_END = 1 << 63  # places are below
_MAX = 100


def check(splitting: Splitting) -> None:
    """Raise BAD_OPTION when the shares make no sense."""
    names = [name for name, _ in splitting.shares]
    for name in names:
        if not _NAME.fullmatch(name):
            raise bad_option(
                f"{short(name)} is not a split: use 1 to 32 lower-case letters, digits, '_', '-'."
            )
    shares = [share for _, share in splitting.shares]
    if not names:
        return
    if len(set(names)) < len(names) or len(names) > _MAX:
        raise bad_option(f"Two splits have the same name, or there are over {_MAX}.")
    if not all(0 < share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise bad_option(
            f"The shares {', '.join(f'{s:g}' for s in shares)} are not positive or do not sum to 1."
        )


def places(contents: Sequence[bytes], seed: int) -> list[int]:
    """Return each row's place, 0 to 2**63 - 1. contents: digests of the normalised content."""
    salt = seed.to_bytes(8, "big")
    found = []
    for digest in contents:
        place = hashlib.blake2b(digest + salt, digest_size=8).digest()
        found.append(int.from_bytes(place, "big") >> 1)
    return found


class Splitter:
    """Assigns rows to splits; when stratified, after it has seen the rows once."""

    def __init__(
        self, splitting: Splitting, columns: Sequence[str], label: str, scratch: Scratch
    ) -> None:
        """columns: of the content. Raises BAD_OPTION when there is no label to stratify by."""
        check(splitting)
        if splitting.stratify and not label:
            raise bad_option("There is no label to stratify by; name its column: --label-column.")
        self.names = [name for name, _ in splitting.shares]
        self.two_passes = splitting.stratify
        self._seed = splitting.seed
        self._columns = columns
        self._label = label
        ends = list(itertools.accumulate(share for _, share in splitting.shares))[:-1]
        self._ends = ends
        self._cuts = [int(end * _END) for end in ends]
        self._strata = Strata(scratch) if self.two_passes else None
        self._by_label: dict[str, list[int]] | None = None

    def look(self, batch: Any) -> None:
        """See rows of the first pass."""
        assert self._strata is not None
        self._strata.add(self._labels(batch), self._places(batch))

    def assign(self, batch: Any) -> list[int]:
        """Return for each row the number of its split."""
        found = self._places(batch)
        if self._strata is None:
            return [bisect_right(self._cuts, place) for place in found]
        if self._by_label is None:
            self._by_label = self._strata.cuts(self._ends)
        cuts = self._by_label
        return [
            bisect_right(cuts[label], place)
            for label, place in zip(self._labels(batch), found, strict=True)
        ]

    def _places(self, batch: Any) -> list[int]:
        return places(digests(batch, self._columns, normal=True), self._seed)

    def _labels(self, batch: Any) -> list[str]:
        values = batch.column(self._label).to_pylist()
        return ["" if value is None else str(value) for value in values]
