"""What storage speaks about: versions, their files and where they came from. No gRPC in here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path


class Format(IntEnum):
    """File format of a version; the numbers are those of the proto."""

    UNSPECIFIED = 0
    GGUF = 1
    SAFETENSORS = 2
    ONNX = 3
    TORCHSCRIPT = 4
    TORCH_EXPORT = 5
    PIPELINE = 8
    PYTHON = 9


class Task(IntEnum):
    """What a version can be asked to do; the numbers are those of the proto."""

    UNSPECIFIED = 0
    GENERATE = 1
    EMBED = 2
    PREDICT = 3


@dataclass(frozen=True)
class File:
    """One file of a version. `path` is the read-only file in the store; size in bytes."""

    name: str
    sha256: str
    size: int
    path: Path | None = None


@dataclass(frozen=True)
class Lineage:
    """Where a version came from; parents and datasets are `name@version`."""

    source: str = ""
    parents: tuple[str, ...] = ()
    job: str = ""
    step: str = ""
    datasets: tuple[str, ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Metric:
    """One measured figure."""

    name: str
    value: float
    unit: str = ""


@dataclass(frozen=True)
class Description:
    """What was read from a version's files. context_length in tokens; 0 and "" = not known.

    tokenizer: its kind. chat_template: Jinja; "" in listings.
    """

    format: Format = Format.UNSPECIFIED
    task: Task = Task.UNSPECIFIED
    architecture: str = ""
    parameters: int = 0
    dtype: str = ""
    context_length: int = 0
    license: str = ""
    tokenizer: str = ""
    chat_template: str = ""


@dataclass(frozen=True)
class Draft:
    """A version before it has a number. files: the main one first."""

    name: str
    files: tuple[File, ...]
    description: Description = Description()
    lineage: Lineage = Lineage()
    metrics: tuple[Metric, ...] = ()
    request_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """An immutable version of a model, and what may change about it.

    Those are its tags, the aliases that mean it and the sha256 of the keys that signed it; the
    last two are empty in listings.
    """

    name: str
    version: int
    description: Description
    files: tuple[File, ...]
    lineage: Lineage
    metrics: tuple[Metric, ...]
    created_unix_s: float
    digest: str
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    signed_by: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """Return `name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def size_bytes(self) -> int:
        """Return the sum of the files' sizes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Filters:
    """Which versions a listing has. tags: all of these, "" = any value. search: in the name."""

    task: Task = Task.UNSPECIFIED
    format: Format = Format.UNSPECIFIED
    tags: Mapping[str, str] = field(default_factory=dict)
    search: str = ""


@dataclass(frozen=True)
class Page:
    """Part of a listing; `next_token` is empty at the end."""

    versions: Sequence[Version]
    next_token: str = ""


@dataclass(frozen=True)
class Progress:
    """How far an import is; total_bytes is 0 while it is not known."""

    stage: str
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True)
class Registered:
    """The end of an import. existed: the same bytes were there before, nothing was added."""

    version: Version
    existed: bool


def version_digest(files: Iterable[File]) -> str:
    """Return the sha256 over names and digests: the same for the same files in any order."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.name):
        digest.update(f"{file.name}\0{file.sha256}\n".encode())
    return digest.hexdigest()
