"""The kernel's counts of how long calls took."""

from __future__ import annotations

import pytest

from llmos.lib import latency


@pytest.mark.parametrize("seconds", [0.0, 5e-5, 1e-4, 1.2e-4, 3e-3, 0.1, 0.1024, 7.7, 1500.0])
def test_a_call_is_counted_under_the_first_bound_above_it(seconds: float) -> None:
    counts: list[int] = []
    latency.count(counts, seconds)
    index = counts.index(1)
    assert sum(counts) == 1 and index == len(counts) - 1
    assert seconds < 1e-4 * 2 ** (index / 4)
    assert index == 0 or seconds >= 1e-4 * 2 ** ((index - 1) / 4) * (1 - 1e-12)


def test_the_last_entry_has_all_that_is_slower() -> None:
    counts = [3]
    latency.count(counts, 1e9)
    assert (counts[0], counts[96], len(counts)) == (3, 1, 97)
