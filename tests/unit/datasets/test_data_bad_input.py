"""Bad input: each kind is refused with its file, its row and its cure, and leaves nothing."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_world import DataWorld
from PIL import Image

from llmos.servers.storage.data import inputs
from llmos.servers.storage.data.model import Cleaning, DataFormat, Mode, Reading, Rule

pytestmark = pytest.mark.asyncio(loop_scope="module")


def parquet(table: object = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table or pa.table({"n": range(10_000)}), sink)
    return sink.getvalue()


def idx(dims: tuple[int, ...], data: bytes) -> bytes:
    return bytes([0, 0, 8, len(dims)]) + struct.pack(f">{len(dims)}I", *dims) + data


def png(width: int, height: int) -> bytes:
    """A PNG whose header says this size, with next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


FILES: list[tuple[str, bytes, str]] = [
    ("wide.csv", b"a,b\n1,2\n1,2,3\n", "wide.csv, row 2: 3 values where 2 are expected; mend"),
    ("narrow.csv", b"a,b\n1,2\n3\n", "narrow.csv, row 2: 1 values where 2 are expected; mend"),
    ("late.csv", b"n\n" + b"1234567890123456\n" * 200_000 + b"x\n", "late.csv, "
     "row 200001: column 'n' has a value that is not int64; mend it, "),
    ("nul.csv", b"a,b\n1,2\n1,\x00\n", "nul.csv, line 3: a NUL byte"),
    ("latin.csv", b"a,b\n1,2\n1,caf\xe9\n", "latin.csv, line 3: bytes that are not UTF-8; "),
    ("cut.csv", b"a,b\n1,caf\xc3", "cut.csv, line 2: bytes that are not UTF-8; "),
    ("utf16.csv", "a,b\n1,2\n".encode("utf-16"), "utf16.csv: it is UTF-16; "),
    ("twice.csv", b"a,a\n1,2\n", "twice.csv: two columns are called 'a'; rename one."),
    ("empty.csv", b"", "empty.csv: it is empty; give a file with rows."),
    ("header.csv", b"a,b\n", "the source: no row is left; "),
    ("blank.txt", b"\n\n \n", "the source: no row is left; "),
    ("label.csv", b"text,label\na,1\nb,\n", "row 2: column 'label' has no label; "),
    ("nan.csv", b"text,label\na,1.5\nb,NaN\n", "row 2: column 'label' has no label; "),
    ("name.csv", b"a," + b"x" * 300 + b"\n1,2\n", "a column name of over 256 characters"),
    ("array.json", b'[{"a": 1}, {"a": 2}]', "array.json: it is one JSON array; "),
    ("mixed.jsonl", b'{"a": 1}\n{"a": 2}\n{"a": "x"}\n', "mixed.jsonl, row 3: column 'a' has a "
     "value that is not int64; mend it, or "),
    ("struct.jsonl", b'{"a": 1}\n{"a": {"b": 2}}\n', "struct.jsonl, row 2: column 'a' has a value "
     "of another type than before; "),
    ("later.jsonl", b'{"a": 1}\n' * 5000 + b'{"a": "x"}\n', "later.jsonl, row 5001: column 'a' "),
    ("new.jsonl", b'{"a": 1}\n' * 5000 + b'{"b": 1}\n', "new.jsonl, row 5001: column 'b' was in "),
    ("twice.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}\n', "twice.jsonl, line 2: two values are called"),
    ("nan.jsonl", b'{"a": 1}\n{"a": NaN}\n', "nan.jsonl, line 2: NaN is no JSON; write null."),
    (
        "half.jsonl",
        b'{"a": "\\ud83d\\ude00"}\n{"a": ["\\ud83d"]}\n',
        "half.jsonl, line 2: it has half of a character (a surrogate alone); write the pair.",
    ),
    ("list.jsonl", b'{"a": 1}\n[1]\n', "list.jsonl, line 2: a JSON list, not an object; "),
    ("broken.jsonl", b'{"a": 1}\n{"a": \n', "broken.jsonl, line 2: it is not one JSON object; "),
    ("deep.jsonl", b'{"a": 1}\n{"a":' + b"[" * 100_000 + b"\n", "deep.jsonl, line 2: "),
    ("large.jsonl", b'{"a": 1}\n{"a": ' + b"9" * 30 + b"}\n", "large.jsonl, row 2: column 'a'"),
    ("cut.parquet", parquet()[:-20], "cut.parquet: it is cut, damaged or no Parquet; "),
    ("short.parquet", b"PAR1", "short.parquet: it is cut, damaged or no Parquet; "),
    ("flipped.parquet", parquet()[:200] + b"\xff" * 200 + parquet()[400:], "it is cut, damaged"),
    ("utf8.parquet", parquet(pa.table({"s": pa.array([b"\xff\xfe"]).view(pa.string())})),
     "utf8.parquet: it is cut, damaged"),
    ("cut.idx", idx((10, 28, 28), b"x" * 100), "cut.idx: it ends before its header says; "),
    ("more.idx", idx((2, 2, 2), b"x" * 9), "more.idx: it goes on after what its header says; "),
    ("lies.idx", idx((1, 0xFFFFFFFF, 0xFFFFFFFF), b"x"), "its header says that a row has 18,446,"),
    ("none.idx", idx((5, 0), b""), "its header says that a row has 0 bytes; "),
    ("a.zip", b"PK\x03\x04" + b"x" * 100, "a.zip: it is a zip archive; unpack it"),
    ("noise.csv", bytes(range(9)) * 500, "noise.csv: it is none of the formats known; "),
    ("cut.csv.gz", gzip.compress(b"a,b\n1,2\n" * 1000)[:-20], "cut.csv.gz: the gzip data is cut; "),
    ("bad.csv.gz", gzip.compress(b"a,b\n1,2\n")[:-8] + bytes(8), "the gzip data is damaged; "),
    ("twice.gz", gzip.compress(gzip.compress(b"a,b\n1,2\n")), "twice.gz: it is gzip in gzip; "),
    ("photo.png", png(20_000, 20_000), "photo.png: an image of over 50 megapixels; "),
    ("cut.png", png(50, 50), "cut.png: it is cut or no image that can be read; "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "said"), FILES, ids=[name for name, _, _ in FILES])
async def test_bad_files(
    world: DataWorld, tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(data)
    before = world.leftovers()
    error = await world.fails(tmp_path / name)
    assert error.reason == "BAD_DATA_FILE" and error.code == 3
    assert said in error.message, error.message
    assert world.leftovers() == before


async def test_a_line_of_a_gigabyte(world: DataWorld, tmp_path: Path) -> None:
    """Refused at its beginning: what follows is not even read."""
    path = tmp_path / "long.csv"
    with path.open("wb") as file:
        file.write(b"a,b\n1,")
        file.write(b"x" * (20 << 20))
        file.truncate(1 << 30)
    for kind, most in ((DataFormat.UNSPECIFIED, 2), (DataFormat.LINES, 8)):
        error = await world.fails(path, reading=Reading(format=kind))
        assert f"long.csv, line 2: over {most} MiB in one line; " in error.message


async def test_a_row_over_many_lines(world: DataWorld, tmp_path: Path) -> None:
    """A quotation mark that is never closed swallows the file."""
    path = tmp_path / "open.csv"
    path.write_bytes(b'a,b\n1,"x\n' + b"1,2\n" * 2_000_000)
    error = await world.fails(path)
    assert "open.csv: a row of over 2 MiB; is a quotation mark missing?" in error.message


async def test_a_bomb(world: DataWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_FREE", 1 << 20)
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * (1 << 20), 9))
    error = await world.fails(path)
    assert "bomb.csv.gz: it expands to over 200 times its size; " in error.message


def link_file(folder: Path) -> str:
    (folder / "a" / "link.png").symlink_to("/etc/passwd")
    return "a/link.png: it is a link; put the file itself in the folder."


def link_folder(folder: Path) -> str:
    (folder / "b").symlink_to("/etc")
    return "b: it is a link; put the file itself in the folder."


def link_up(folder: Path) -> str:
    (folder / "a" / "up").symlink_to("..")
    return "a/up: it is a link; put the file itself in the folder."


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "a" / "pipe")
    return "a/pipe: it is neither a file nor a folder; remove it."


def bytes_name(folder: Path) -> str:
    Path(os.fsdecode(os.fsencode(folder) + b"/a/x\xff\n.png")).write_bytes(b"x")
    return "its name is not printable text; rename it."


def deep(folder: Path) -> str:
    inner = folder.joinpath(*["d"] * 40)
    inner.mkdir(parents=True)
    (inner / "x").write_bytes(b"x")
    return "it is over 16 folders deep; flatten the folder."


def broken(folder: Path) -> str:
    (folder / "a" / "text.png").write_bytes(b"no image")
    return "a/text.png: it is cut or no image that can be read; "


def unlabelled(folder: Path) -> str:
    Image.new("RGB", (3, 3), (9, 9, 9)).save(folder / "top.png")
    return "column 'label' has no label; "


@pytest.mark.parametrize(
    "spoil", [link_file, link_folder, link_up, pipe, bytes_name, deep, broken, unlabelled]
)
async def test_bad_folders(world: DataWorld, tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a" / "1.png")
    said = spoil(tmp_path)
    error = await world.fails(tmp_path)
    assert error.reason == "BAD_DATA_FILE" and said in error.message, error.message


async def test_folders_without_data(world: DataWorld, tmp_path: Path) -> None:
    error = await world.fails(tmp_path)
    assert "there is no file in it" in error.message
    (tmp_path / "a.csv").write_text("")
    assert "a.csv: it is empty" in (await world.fails(tmp_path)).message


async def test_files_of_other_shapes(world: DataWorld, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "2.csv").write_text("a,c\n1,2\n")
    error = await world.fails(tmp_path)
    assert "2.csv: " in error.message and error.reason in ("BAD_DATA_FILE", "BAD_OPTION")


async def test_rows_never_show_in_errors(world: DataWorld, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("a,b\n1,2\nmy secret,x,y\n")
    assert "secret" not in (await world.fails(tmp_path / "s.csv")).message
    (tmp_path / "s.jsonl").write_text('{"a": 1}\n{"a": "my secret"}\n')
    assert "secret" not in (await world.fails(tmp_path / "s.jsonl")).message


async def test_what_cannot_be_read_may_be_left_out(world: DataWorld, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(3):
        Image.new("RGB", (4, 4), (i, 2, 3)).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "1.png").write_bytes(b"no image")
    made = await world.take(tmp_path, name="left", cleaning=Cleaning({Rule.UNREADABLE: Mode.APPLY}))
    report = made.dataset.report
    assert made.dataset.rows == 2 and report is not None
    (rule,) = [rule for rule in report.rules if rule.rule is Rule.UNREADABLE]
    assert rule.rows == 1 and rule.examples == (2,)


async def test_missing_labels_may_be_dropped_or_kept(world: DataWorld, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("text,label\na,1\nb,\nc,2\n")
    for mode, rows in ((Mode.APPLY, 2), (Mode.REPORT, 3), (Mode.OFF, 3)):
        made = await world.take(
            tmp_path / "l.csv", name=f"l{mode}", cleaning=Cleaning({Rule.MISSING_LABEL: mode})
        )
        assert made.dataset.rows == rows
