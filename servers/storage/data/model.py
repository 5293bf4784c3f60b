"""What is said about data sets. No gRPC, no Arrow in here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path


class DataFormat(IntEnum):
    """What a source is made of; the numbers are those of the proto."""

    UNSPECIFIED = 0
    CSV = 1
    JSONL = 2
    PARQUET = 3
    LINES = 4
    PARAGRAPHS = 5
    MAIL = 6
    IMAGES = 7
    IDX = 8


class Rule(IntEnum):
    """A cleaning rule; the numbers are those of the proto."""

    UNSPECIFIED = 0
    HTML = 1
    EMPTY = 2
    EXACT_DUPLICATE = 3
    NORMALIZED_DUPLICATE = 4
    LANGUAGE = 5
    LENGTH = 6
    MISSING_LABEL = 7
    UNREADABLE = 8


class Mode(IntEnum):
    """What to do about a rule; the numbers are those of the proto."""

    UNSPECIFIED = 0
    OFF = 1
    REPORT = 2
    APPLY = 3


@dataclass(frozen=True)
class Reading:
    """How to read a source where its content does not say it; "" and () = as the content says."""

    format: DataFormat = DataFormat.UNSPECIFIED
    delimiter: str = ""
    columns: tuple[str, ...] = ()
    no_quotes: bool = False
    encoding: str = ""
    types: Mapping[str, str] = field(default_factory=dict)
    text_column: str = ""
    label_column: str = ""
    content_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cleaning:
    """How to clean. max_chars 0 = no limit."""

    rules: Mapping[Rule, Mode] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    min_chars: int = 0
    max_chars: int = 0

    def mode(self, rule: Rule) -> Mode:
        """Return what to do about a rule: as set, else its default."""
        found = self.rules.get(rule, Mode.UNSPECIFIED)
        if found is not Mode.UNSPECIFIED:
            return found
        return Mode.REPORT if rule <= Rule.NORMALIZED_DUPLICATE else Mode.OFF


@dataclass(frozen=True)
class Splitting:
    """How to split: (name, share) in order; () = as the source is."""

    shares: tuple[tuple[str, float], ...] = ()
    seed: int = 0
    stratify: bool = False


@dataclass(frozen=True)
class Order:
    """What to import, and how."""

    source: str
    name: str = ""
    reading: Reading = Reading()
    cleaning: Cleaning = Cleaning()
    splitting: Splitting = Splitting()
    license: str = ""
    job: str = ""


@dataclass(frozen=True)
class Column:
    """A column; `type` as Arrow writes it."""

    name: str
    type: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Split:
    """A Parquet file of a version; size in bytes."""

    name: str
    rows: int
    sha256: str
    size: int
    path: Path | None = None


@dataclass(frozen=True)
class Lineage:
    """Where a version came from; parents are `name@version`."""

    source: str = ""
    parents: tuple[str, ...] = ()
    job: str = ""
    step: str = ""


@dataclass(frozen=True)
class RuleReport:
    """What a rule found; examples are the numbers of the first rows, from 1."""

    rule: Rule
    mode: Mode
    rows: int
    examples: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """What cleaning found. lengths: (from, to, rows), characters; the others (name, rows)."""

    rows_read: int = 0
    rows_kept: int = 0
    rules: tuple[RuleReport, ...] = ()
    lengths: tuple[tuple[int, int, int], ...] = ()
    languages: tuple[tuple[str, int], ...] = ()
    labels: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Draft:
    """A version before it has a number."""

    name: str
    columns: tuple[Column, ...]
    splits: tuple[Split, ...]
    lineage: Lineage
    format: DataFormat = DataFormat.UNSPECIFIED
    license: str = ""
    text_column: str = ""
    label_column: str = ""
    report: Report = Report()


@dataclass(frozen=True)
class Dataset:
    """An immutable version. report: None in listings."""

    name: str
    version: int
    columns: tuple[Column, ...]
    splits: tuple[Split, ...]
    lineage: Lineage
    format: DataFormat
    license: str
    text_column: str
    label_column: str
    created_unix_s: float
    digest: str
    report: Report | None = None

    @property
    def ref(self) -> str:
        """Return `name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def rows(self) -> int:
        """Return the rows of all splits."""
        return sum(split.rows for split in self.splits)

    @property
    def size_bytes(self) -> int:
        """Return the sum of the files' sizes."""
        return sum(split.size for split in self.splits)


@dataclass(frozen=True)
class Imported:
    """The end of an import. existed: the same data was there before, nothing was added."""

    dataset: Dataset
    existed: bool


@dataclass(frozen=True)
class Page:
    """Part of a listing; `next_token` is empty at the end."""

    datasets: Sequence[Dataset]
    next_token: str = ""


@dataclass(frozen=True)
class Share:
    """What a worker wants to read; see ReadDataset of the proto. limit 0 = to the end."""

    ref: str
    split: str = ""
    worker: int = 0
    workers: int = 1
    offset: int = 0
    limit: int = 0
    batch_rows: int = 1024
    columns: tuple[str, ...] = ()
    shuffle_seed: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class Chunk:
    """A piece of an Arrow IPC stream; rows: of the batch that ends here, 0 = it goes on."""

    data: bytes
    rows: int
    next_offset: int
    share_rows: int


def data_digest(splits: Iterable[Split]) -> str:
    """Return the sha256 over the splits' names and digests, in order."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(f"{split.name}\0{split.sha256}\n".encode())
    return digest.hexdigest()
