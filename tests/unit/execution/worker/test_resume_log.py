from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.lib.errors import Internal
from llmos.servers.execution.worker import resume


def test_an_empty_log_is_no_progress() -> None:
    assert resume.parse(b"") is None


@settings(deadline=None)  # the machine may be busy
@given(
    st.integers(0, 2**64 - 1), st.lists(st.lists(st.integers(0, 2**31)), max_size=8), st.booleans()
)
def test_what_is_logged_is_read(seed: int, pieces: list[list[int]], finished: bool) -> None:
    data = resume.begin(seed)
    for i, tokens in enumerate(pieces):
        data += resume.entry(tokens, finished and i == len(pieces) - 1)
    progress = resume.parse(data)
    assert progress is not None
    assert progress.seed == seed
    assert list(progress.tokens) == [t for piece in pieces for t in piece]
    assert progress.finished == (finished and bool(pieces))


@pytest.mark.parametrize("data", [b"\x80", b"\x01\x85", b"\x05\x00\x03"])
def test_a_damaged_log_is_told(data: bytes) -> None:
    with pytest.raises(Internal) as caught:
        resume.parse(data)
    assert caught.value.reason == "BAD_RESUME_LOG"


def test_the_version_of_an_adapter_is_kept() -> None:
    log = resume.begin(7, 3) + resume.entry([0, 300], False)
    found = resume.parse(log, adapted=True)
    assert found == resume.Progress(7, [0, 300], False, 3)
    assert resume.parse(log + resume.entry([], True), adapted=True) == resume.Progress(
        7, [0, 300], True, 3
    )
