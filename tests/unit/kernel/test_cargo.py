"""Large envelopes that never enter protobuf mean what protobuf says they mean."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib.cargo import LARGE, Cargo, data, unpack
from llmos.lib.outbox import Outbox

sizes = st.one_of(st.integers(0, 200), st.integers(LARGE - 40, LARGE + 40), st.integers(0, 60_000))
envelopes = st.builds(
    lambda call, kind, flags, cookie, size, window, method: pb.Envelope(
        call=call,
        kind=kind,
        flags=flags,
        cookie=cookie,
        payload=b"p" * size,
        window=window,
        open=pb.Open(method=method) if method else None,
    ),
    st.integers(0, 2**64 - 1),
    st.sampled_from([pb.KIND_DATA, pb.KIND_DATA, pb.KIND_OPEN, pb.KIND_END]),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=20),
    sizes,
    st.sampled_from([0, 0, 7]),
    st.sampled_from(["", "", "/a.B/C"]),
)


def plain(envelope: pb.Envelope) -> pb.Envelope:
    return pb.Envelope.FromString(envelope.SerializeToString())


@settings(max_examples=150, deadline=None)
@given(st.lists(envelopes, max_size=6))
def test_frames_are_read_as_protobuf_reads_them(sent: list[pb.Envelope]) -> None:
    frame = pb.Frame(envelopes=sent).SerializeToString()
    found = unpack(memoryview(frame))
    assert [plain(e) for e in found] == sent
    for envelope in found:
        if envelope.kind == pb.KIND_DATA and len(envelope.payload) >= LARGE:
            assert isinstance(envelope, Cargo) or envelope.window or envelope.HasField("open")


@settings(max_examples=100, deadline=None)
@given(st.lists(envelopes, min_size=1, max_size=6))
def test_what_an_outbox_sends_is_a_frame(sent: list[pb.Envelope]) -> None:
    outbox = Outbox()
    outbox.put_all(unpack(memoryview(pb.Frame(envelopes=sent).SerializeToString())))
    got: list[pb.Envelope] = []
    while len(got) < len(sent):
        parts, size = outbox.take()
        frame = b"".join(parts)
        assert len(frame) == size < 1 << 20
        got.extend(pb.Frame.FromString(frame).envelopes)
    for call in {e.call for e in sent}:  # calls may overtake each other
        assert [e for e in got if e.call == call] == [e for e in sent if e.call == call]


@settings(max_examples=300, deadline=None)
@given(st.lists(envelopes, min_size=1, max_size=4), st.data())
def test_damaged_frames_are_refused_or_read_alike(
    sent: list[pb.Envelope], draws: st.DataObject
) -> None:
    frame = bytearray(pb.Frame(envelopes=sent).SerializeToString())
    for _ in range(draws.draw(st.integers(1, 3))):
        if frame:
            at = draws.draw(st.integers(0, min(len(frame) - 1, 200)))
            frame[at] = draws.draw(st.integers(0, 255))
    if draws.draw(st.booleans()):
        del frame[draws.draw(st.integers(0, len(frame))) :]
    try:
        found = [plain(e) for e in unpack(memoryview(frame))]
    except DecodeError:
        return
    # Where both read it they must agree, but for a bare or unknown field that we drop.
    try:
        assert found == list(pb.Frame.FromString(bytes(frame)).envelopes)
    except DecodeError:
        pytest.fail("protobuf refuses what we read")


def test_a_view_is_not_copied() -> None:
    message = b"m" * 100_000
    envelope = data(7, memoryview(message)[10:90_000], pb.FLAG_MESSAGE)
    assert isinstance(envelope, Cargo)
    assert envelope.payload.obj is message
