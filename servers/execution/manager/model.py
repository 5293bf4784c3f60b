"""What the manager knows: model references, versions, and workers."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from llmos.lib.errors import InvalidArgument, ResourceExhausted
from llmos.servers.execution.manager.options import NONE, Options
from llmos.servers.execution.manager.process import Process
from llmos.servers.execution.wire import name_of

_REF = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})(?:@(?:([1-9][0-9]{0,17})|([A-Za-z][A-Za-z0-9._-]{0,63})))?"
)


@dataclass(frozen=True)
class Ref:
    """A model reference; version 0 without an alias stands for the newest."""

    name: str
    version: int = 0
    alias: str = ""

    @staticmethod
    def parse(text: str) -> Ref:
        """Return what `name`, `name@version` or `name@alias` says. Raises BAD_NAME."""
        match = _REF.fullmatch(text)
        if match is None:
            shown = repr(text) if len(text) <= 60 else f"{text[:60]!r} ..."
            raise InvalidArgument(
                "BAD_NAME",
                f"{shown} is not a model reference; it must be `name`, `name@version` or "
                "`name@alias`, with letters, digits, `.`, `_` and `-` in the name.",
            )
        return Ref(match[1], int(match[2] or 0), match[3] or "")

    def __str__(self) -> str:
        """Return it as written."""
        return self.moves or f"{self.name}@{self.version}"

    @property
    def moves(self) -> str:
        """Return it where it can mean another version later, as names and aliases do; else ""."""
        if self.version:
            return ""
        return f"{self.name}@{self.alias}" if self.alias else self.name


@dataclass(frozen=True)
class StoredFile:
    """A file of a version; path is "" when storage is on another host."""

    name: str
    sha256: str
    size: int
    path: str = ""


@dataclass(frozen=True)
class Version:
    """A model version in storage."""

    name: str
    version: int
    format: str = ""
    task: str = ""
    context_length: int = 0
    created_unix_s: float = 0.0
    files: Sequence[StoredFile] = ()
    base: str = ""  # of an adapter: the model it is for, as far as known
    aliases: Sequence[str] = ()  # of the name, that mean this version now
    direct: str = ""  # address where its files are read fastest; "" = over the kernel only

    @property
    def ref(self) -> str:
        """Return `name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def adapter(self) -> bool:
        """Return whether it is a LoRA adapter as PEFT saves them."""
        return any(file.name == "adapter_config.json" for file in self.files)


class Asker(NamedTuple):
    """On whose behalf a model is loaded: class (1 SYSTEM to 4 BATCH) and tenant."""

    rank: int = 3
    tenant: str = ""


NOBODY = Asker()


@dataclass(frozen=True)
class Plan:
    """What loading a version would need; bytes is 0 when it is loaded."""

    ref: str
    device: str
    bytes: int
    evict: Sequence[str]


class State(Enum):
    """Life of a worker; the values are those of ModelState in execution.proto."""

    STORED = 1
    LOADING = 2
    READY = 3
    UNLOADING = 4
    FAILED = 5


@dataclass(eq=False)
class Worker:
    """One worker of a version that is loaded, being loaded, or being unloaded."""

    name: str
    version: int
    replica: int = 0  # which of the version's workers this is
    state: State = State.LOADING
    process: Process | None = None
    engine: str = ""
    task: str = ""
    device: str = ""
    granted_bytes: int = 0
    used_bytes: int = 0
    keys: list[str] = field(default_factory=list)  # `ref` included
    pinned: bool = False
    leases: int = 0  # clients that hold it
    moving: bool = False  # loading, unloading, or its first call is on the way
    running: int = 0  # calls
    served: int = 0  # calls that ended
    rank: int = 3  # class of the call it was loaded for: 1 SYSTEM to 4 BATCH
    tenant: str = ""  # that it was loaded for
    load_s: float = 0.0  # its last load, without the wait for room
    context_length: int = 0
    listen: str = ""
    ready_at: float = field(default_factory=time.monotonic)
    refused: ResourceExhausted | None = None  # why it has to wait for room
    options: Options = NONE
    hung: str = ""  # how it hung, when it was killed for that
    threads: int = 0  # for computing; 0 = all cores
    log_level: str = ""  # as lib.log reads it
    draft: str = ""  # the version that guesses for it, `name@version`
    cpus: Sequence[int] = ()  # cores of its own; () = it may use all

    @property
    def ref(self) -> str:
        """Return `name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def id(self) -> str:
        """Return its own name, `name@version`, or `name@version#replica` from the second on."""
        return name_of(self.ref, self.replica)

    @property
    def grant(self) -> str:
        """Return the id of its residency grant, `name@version#replica`."""
        return f"{self.ref}#{self.replica}"

    @property
    def pid(self) -> int:
        """Return its process id; 0 before the fork."""
        return self.process.pid if self.process is not None else 0

    def alive(self) -> bool:
        """Return whether its process runs."""
        return self.process is not None and self.process.alive()
