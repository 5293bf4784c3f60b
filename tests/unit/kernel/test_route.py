"""Scanning for the route field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.api.execution.v1 import execution_pb2
from llmos.lib.errors import InvalidArgument
from llmos.lib.route import string_field


@given(model=st.text(), prompt=st.text(), top=st.integers(0, 2**32 - 1))
def test_it_finds_what_protobuf_finds(model: str, prompt: str, top: int) -> None:
    request = execution_pb2.GenerateRequest(model=model, prompt=prompt, max_tokens=top)
    request.sampling.temperature = 1.5
    data = request.SerializeToString()
    assert string_field(data, 1) == model
    assert string_field(data, 2) == prompt


def test_the_last_of_several_counts() -> None:
    assert string_field(b"\x0a\x01a\x0a\x01b", 1) == "b"
    assert string_field(b"\x10\x05\x0a\x01b", 1) == "b"


@given(st.binary(max_size=64))
def test_garbage_is_refused_or_read_but_never_crashes(data: bytes) -> None:
    try:
        string_field(data, 1)
    except InvalidArgument as err:
        assert err.reason == "BAD_MESSAGE"


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05abc", b"\x0a\x02\xff\xfe", b"\xff" * 12])
def test_cut_off_messages_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        string_field(data, 1)
