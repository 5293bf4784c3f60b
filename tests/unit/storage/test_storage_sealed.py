"""Sealed files: any size and piece, any range, every kind of change is noticed; the key file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmos.lib.errors import DataLoss, FailedPrecondition, InvalidArgument
from llmos.servers.storage.crypt.keys import KeyRing
from llmos.servers.storage.crypt.stream import (
    CHUNK,
    HEADER,
    TAG,
    Opener,
    Sealer,
    Tampered,
    sealed_size,
)

KEY = bytes(range(32))


def seal(data: bytes, piece: int = 100_000) -> bytes:
    sealer, out = Sealer(KEY), b""
    for i in range(0, len(data), piece):
        out += sealer.update(data[i : i + piece])
    return out + sealer.finish()


def read(sealed: bytes, size: int, offset: int, length: int) -> bytes:
    opener = Opener(KEY, sealed[:HEADER], size)
    first, start, count = opener.span(offset, length)
    data, base = opener.open(first, sealed[start : start + count])
    return data[offset - base : offset - base + length]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 7])
@pytest.mark.parametrize("piece", [1000, CHUNK, 10 * CHUNK])
def test_roundtrip(size: int, piece: int) -> None:
    data = os.urandom(size)
    sealed = seal(data, piece)
    assert len(sealed) == sealed_size(size)
    assert read(sealed, size, 0, size) == data or not size
    for offset, length in [(0, 1), (CHUNK - 1, 2), (size // 2, size // 3), (max(0, size - 1), 1)]:
        if offset + length <= size:
            assert read(sealed, size, offset, length) == data[offset : offset + length]


def test_every_change_is_noticed() -> None:
    data = os.urandom(2 * CHUNK + 5)
    sealed = seal(data)
    step = CHUNK + TAG
    first, second, last = (
        sealed[HEADER : HEADER + step],
        sealed[HEADER + step : HEADER + 2 * step],
        sealed[HEADER + 2 * step :],
    )
    head = sealed[:HEADER]
    for wrong in (
        head + second + first + last,  # moved
        head + first + first + last,  # repeated
        head[:9] + bytes(7) + first + second + last,  # another prefix
        head + first + second + last[:-1] + bytes([last[-1] ^ 1]),
    ):
        with pytest.raises(Tampered):
            read(wrong, len(data), 0, len(data))
    with pytest.raises(Tampered):  # cut at a chunk, with a size that fits: not its last chunk
        read(head + first + second, 2 * CHUNK, 0, 2 * CHUNK)
    with pytest.raises(Tampered):  # the last chunk alone, at its place, for a longer file
        read(sealed, len(data) + CHUNK, 2 * CHUNK, 5)
    with pytest.raises(Tampered):
        Opener(KEY, b"x" * HEADER, 5)


def test_going_on_gives_one_file() -> None:
    data = os.urandom(5 * CHUNK + 3)
    first = Sealer(KEY)
    head = first.update(data[: 3 * CHUNK + 10])
    assert first.held == 10
    second = Sealer(KEY, head[:HEADER], 3)
    sealed = head + second.update(data[3 * CHUNK :]) + second.finish()
    assert read(sealed, len(data), 0, len(data)) == data


def key_file(path: Path, *lines: str, mode: int = 0o600) -> Path:
    path.write_text("\n".join(lines))
    path.chmod(mode)
    return path


def test_keys_wrap_and_rotate(tmp_path: Path) -> None:
    old, new = os.urandom(32).hex(), os.urandom(32).hex()
    before = KeyRing.load(key_file(tmp_path / "k", "# old", old))
    key, wrapped = before.new("a" * 64)
    both = KeyRing.load(key_file(tmp_path / "k2", new, f"{old}  # old"))
    assert both.unwrap(wrapped, "a" * 64) == key
    assert not both.is_current(wrapped) and both.is_current(both.wrap(key, "a" * 64))
    with pytest.raises(DataLoss, match="was changed"):
        both.unwrap(wrapped, "b" * 64)  # the key of another file
    with pytest.raises(FailedPrecondition) as wrong:
        KeyRing.load(key_file(tmp_path / "k3", new)).unwrap(wrapped, "a" * 64)
    assert wrong.value.reason == "WRONG_KEY"


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "has no key"), ("zz", "line 1 is not hex"), ("00" * 31, "31 bytes"), ("é", "not text")],
)
def test_bad_key_files(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason) as caught:
        KeyRing.load(key_file(tmp_path / "k", text))
    assert caught.value.reason == "BAD_KEY_FILE"
    with pytest.raises(InvalidArgument, match="cannot be read"):
        KeyRing.load(tmp_path / "absent")
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        KeyRing.load(key_file(tmp_path / "open", "00" * 32, mode=0o644))
