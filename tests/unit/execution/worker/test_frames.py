from __future__ import annotations

import pytest

from llmos.api.execution.v1 import zygote_pb2 as pb
from llmos.servers.execution.wire import BadFrame, pack, unpack


def test_frames_come_out_whole_and_in_order() -> None:
    sent = [pb.ZygoteCommand(go=pb.GoWorker(pid=i, granted_bytes=2**40)) for i in range(3)]
    data = b"".join(map(pack, sent))
    buffer, got = bytearray(), []
    for byte in data:
        buffer.append(byte)
        while (message := unpack(buffer, pb.ZygoteCommand)) is not None:
            got.append(message)
    assert got == sent
    assert not buffer


def test_an_empty_message_is_a_frame() -> None:
    buffer = bytearray(pack(pb.ZygoteCommand()))
    assert unpack(buffer, pb.ZygoteCommand) == pb.ZygoteCommand()
    assert unpack(buffer, pb.ZygoteCommand) is None


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x02\x00\x00\x00\xff\xff"])
def test_garbage_is_told(data: bytes) -> None:
    with pytest.raises(BadFrame):
        unpack(bytearray(data), pb.ZygoteCommand)
