"""What a source is, by its first bytes; names only decide where the content leaves it open."""

from __future__ import annotations

import json
from collections.abc import Sequence

from llmos.servers.storage.data.faults import bad_data
from llmos.servers.storage.data.inputs import Input
from llmos.servers.storage.data.model import DataFormat
from llmos.servers.storage.data.readers.csv import delimiter_of
from llmos.servers.storage.data.readers.idx import is_idx
from llmos.servers.storage.data.readers.images import is_image
from llmos.servers.storage.data.readers.mail import is_mail, is_mbox

_HEAD = 64 << 10
_CONTAINERS = (
    (b"PK\3\4", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"Rar!", "a rar archive"),
    (b"\x1f\x8b", "gzip in gzip"),
    (b"SQLite format 3", "an SQLite database"),
    (b"ARROW1", "an Arrow file"),
    (b"%PDF", "a PDF"),
)


def recognise(files: Sequence[Input]) -> DataFormat:
    """Return the format of a source by its first file that is not empty. Raises BAD_DATA_FILE."""
    if not files:
        raise bad_data("the folder", "there is no file in it", "give a folder with data")
    for file in files:
        if head := file.head(_HEAD):
            return _of(file.name, head)
    raise bad_data(files[0].name, "it is empty", "give a file with rows")


def _of(name: str, head: bytes) -> DataFormat:
    if head.startswith(b"PAR1"):
        return DataFormat.PARQUET
    if is_image(head):
        return DataFormat.IMAGES
    if is_idx(head):
        return DataFormat.IDX
    for magic, what in _CONTAINERS:
        if head.startswith(magic):
            raise bad_data(name, f"it is {what}", "unpack it, or export it as CSV or Parquet")
    if head[257:262] == b"ustar":
        raise bad_data(name, "it is a tar archive", "unpack it and import the folder")
    if is_mbox(head) or is_mail(head):
        return DataFormat.MAIL
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    if head[:2] not in (b"\xff\xfe", b"\xfe\xff") and _control(head):
        raise bad_data(name, "it is none of the formats known", "see `llmos-ctl dataset import -h`")
    return _of_text(name, text, len(head) < _HEAD)


def _control(head: bytes) -> bool:
    """Return whether bytes have more control characters than text has, even damaged."""
    return sum(byte < 9 for byte in head) > max(8, len(head) / 20)


def _of_text(name: str, text: str, whole: bool) -> DataFormat:
    first = text.lstrip()
    if first.startswith("["):
        try:
            found, _ = json.JSONDecoder().raw_decode(first)
            array = isinstance(found, list)
        except (ValueError, RecursionError):
            array = not whole and first[1:].lstrip().startswith("{")
        if array:
            raise bad_data(name, "it is one JSON array", "write one object a line (`jq -c .[]`)")
    if first.startswith("{"):
        line, end, _ = first.partition("\n")
        try:
            if (end or whole) and isinstance(json.loads(line), dict):
                return DataFormat.JSONL
        except (ValueError, RecursionError):
            pass  # braces are not yet JSON
        if not end and not whole:
            return DataFormat.JSONL  # one line longer than what was looked at
    base = name.lower().removesuffix(".gz")
    if base.endswith((".csv", ".tsv")) or (
        not base.endswith((".txt", ".md")) and delimiter_of(text, whole)
    ):
        return DataFormat.CSV
    return DataFormat.LINES
