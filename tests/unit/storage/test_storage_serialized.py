"""Replies that the server serializes itself are what protobuf would have made."""

from __future__ import annotations

import os

import pytest

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.servers.storage.service import serialized


@pytest.mark.parametrize("size", [1, 127, 128, 16383, 16384, 1 << 20])
def test_serialized(size: int) -> None:
    data = os.urandom(size)
    assert serialized(data) == pb.ReadBlobResponse(data=data).SerializeToString()
