"""What the registry speaks about beside versions. No gRPC in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from llmos.servers.storage.model import Format, Lineage


class MoveKind(IntEnum):
    """What happened to an alias; the numbers are those of the proto."""

    UNSPECIFIED = 0
    SET = 1
    ROLLBACK = 2
    DELETE = 3


@dataclass(frozen=True)
class Alias:
    """A name for a version. revision: of its newest move."""

    model: str
    alias: str
    version: int
    revision: int


@dataclass(frozen=True)
class AliasMove:
    """One change of an alias; version 0 = nowhere. Only `revision` is set at a watch's start."""

    revision: int
    model: str = ""
    alias: str = ""
    kind: MoveKind = MoveKind.UNSPECIFIED
    version: int = 0
    previous_version: int = 0
    actor: str = ""
    unix_s: float = 0.0


@dataclass(frozen=True)
class AliasPage:
    """Part of a listing; `next_token` is empty at the end."""

    aliases: Sequence[Alias]
    next_token: str = ""


@dataclass(frozen=True)
class MovePage:
    """Part of a history, newest first; `next_token` is empty at the end."""

    moves: Sequence[AliasMove]
    next_token: str = ""


@dataclass(frozen=True)
class VersionLease:
    """Keeps a version of a model, or of a data set, from being deleted until it runs out."""

    id: str
    model: str
    version: int
    holder: str
    ttl_s: float
    remaining_s: float
    dataset: bool = False


@dataclass(frozen=True)
class LineageNode:
    """One version of a lineage. depth: steps from the one asked for. missing: it was deleted."""

    ref: str
    depth: int
    missing: bool = False
    lineage: Lineage = Lineage()
    format: Format = Format.UNSPECIFIED
    created_unix_s: float = 0.0
    dtype: str = ""


@dataclass(frozen=True)
class LineageWalk:
    """Nodes by depth, the version asked for first. truncated: there is more."""

    nodes: Sequence[LineageNode]
    truncated: bool = False
