"""What small state is made of. Revisions and tokens are numbers that only grow; times are ms."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Document:
    """A document as of some revision; deleted ones have version 0."""

    key: str
    value: bytes = b""
    content_type: str = ""
    lease: str = ""
    create_revision: int = 0
    mod_revision: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True)
class DocumentPage:
    """Documents in key order, as of `revision`; `next_token` "" = the last page."""

    documents: Sequence[Document]
    revision: int
    next_token: str = ""


@dataclass(frozen=True, slots=True)
class Put:
    """Create or replace."""

    key: str
    value: bytes
    content_type: str = ""
    lease: str = ""


@dataclass(frozen=True, slots=True)
class Keys:
    """One key, or all with a prefix."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete what is there of these."""

    keys: Keys


@dataclass(frozen=True, slots=True)
class Read:
    """Read what is there of these, at most `limit`."""

    keys: Keys
    limit: int = 100
    keys_only: bool = False


Operation = Put | Delete | Read


class Target(enum.IntEnum):
    """What a Compare looks at; the numbers are those of the proto."""

    VERSION = 1
    CREATE_REVISION = 2
    MOD_REVISION = 3
    VALUE = 4


class Relation(enum.IntEnum):
    """document RELATION given; the numbers are those of the proto."""

    EQUAL = 1
    NOT_EQUAL = 2
    LESS = 3
    GREATER = 4


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition; `given` is bytes for VALUE, else a number."""

    key: str
    target: Target
    relation: Relation
    given: int | bytes


@dataclass(frozen=True, slots=True)
class Transaction:
    """Compares, then one of two lists of operations. `request_id` makes retries safe."""

    then: Sequence[Operation]
    compares: Sequence[Compare] = ()
    otherwise: Sequence[Operation] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one operation: what was put (without value) or read, or how many were deleted."""

    documents: Sequence[Document] = ()
    deleted: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a transaction; `revision` is the change's, or the present one when nothing changed."""

    succeeded: bool
    results: Sequence[Result]
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """Whole transactions' changes, in order; everything up to `revision` was told with them."""

    documents: Sequence[Document]  # as they became; version 0 = deleted
    revision: int


@dataclass(frozen=True, slots=True)
class Lease:
    """A promise to live."""

    id: str
    ttl_ms: int
    left_ms: int
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Attached:
    """A lease and what goes with it: keys of documents, names of locks."""

    lease: Lease
    documents: Sequence[str]
    locks: Sequence[str]


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the queue for a lock; the first holds it."""

    token: int
    lease: str
    owner: str
    asked_unix_s: float


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock, who holds it and who waits."""

    name: str
    holder: Place | None = None
    waiting: Sequence[Place] = field(default_factory=tuple)
