"""Which names of shared memory are opened, and that nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmos.lib.errors import InvalidArgument, NotFound, OutOfRange
from llmos.servers.execution.oip import segments


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "..",
        "/..",
        "/a/b",
        "a/b",
        "//a",
        "/.x",
        "a b",
        "a\n",
        "a\0",
        "x" * 201,
        "llmos-0-a",
    ],
)
def test_keys_that_are_no_names(key: str) -> None:
    assert segments.name_of(key) == ""


def test_names_and_patterns() -> None:
    assert segments.name_of("/cam_1.raw") == segments.name_of("cam_1.raw") == "cam_1.raw"
    assert segments.is_allowed("cam_1", "frames, /cam_*")
    assert segments.is_allowed("frames", "frames, /cam_*")
    for patterns in ("", ",", " , ", "cam", "CAM*", "cam_?x"):
        assert not segments.is_allowed("cam_1", patterns)


def test_only_files_are_opened_and_never_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "FOLDER", tmp_path)
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    segments.check("file", 2, 8)
    assert segments.read("file", 2, 3) == b"234"
    segments.write("file", 8, b"xy")
    assert (tmp_path / "file").read_bytes() == b"01234567xy"
    for name in ("link", "folder", "pipe"):
        with pytest.raises(InvalidArgument) as bad:
            segments.check(name, 0, 1)
        assert bad.value.reason == "BAD_REGION"
    with pytest.raises(NotFound):
        segments.read("none", 0, 1)
    with pytest.raises(OutOfRange):
        segments.read("file", 5, 6)
    with pytest.raises(OutOfRange):
        segments.write("file", 9, b"12")
    assert (tmp_path / "file").stat().st_size == 10
