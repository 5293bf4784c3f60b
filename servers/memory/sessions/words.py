"""Words of sessions, and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmos.lib.errors import InvalidArgument

ROLES = ("system", "user", "assistant", "tool")
MAX_TURNS = 100_000  # of a session
MAX_APPEND = 1000
MAX_TEXT = 1 << 20  # bytes
MAX_TTL_S = 100 * 365 * 86400
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NAME = 256  # bytes of a model reference


@dataclass(frozen=True)
class Settings:
    """What a client says about a session. See Session of sessions.proto."""

    system: str = ""
    model: str = ""
    embedder: str = ""
    ttl_s: int = 0
    summary: str = ""


@dataclass(frozen=True)
class Session:
    """A session as it is kept; times are wall clock, s."""

    id: str
    settings: Settings
    turns: int
    created: float
    used: float


@dataclass(frozen=True)
class Turn:
    """A turn. tokens: as counted for the session's model, 0 = not counted yet."""

    role: str
    content: str
    pinned: bool = False
    number: int = 0
    created: float = 0.0
    tokens: int = 0


def check_id(id: str) -> None:
    """Raise InvalidArgument BAD_SESSION."""
    if not _ID.fullmatch(id):
        raise InvalidArgument(
            "BAD_SESSION", "A session's id has 1 to 128 letters, digits and any of `._:-`."
        )


def check_settings(settings: Settings) -> None:
    """Raise InvalidArgument BAD_SESSION."""
    for what in ("system", "summary"):
        if len(getattr(settings, what).encode()) > MAX_TEXT:
            raise InvalidArgument(
                "BAD_SESSION", f"The {what} text is over {MAX_TEXT:,} bytes; shorten it."
            )
    for what in ("model", "embedder"):
        if len(getattr(settings, what).encode()) > _NAME:
            raise InvalidArgument("BAD_SESSION", f"The {what} is no model reference: too long.")
    if settings.ttl_s > MAX_TTL_S:
        raise InvalidArgument(
            "BAD_SESSION", f"ttl_s is over {MAX_TTL_S:,} seconds; 0 keeps a session for ever."
        )


def check_turns(turns: Sequence[Turn]) -> None:
    """Raise InvalidArgument BAD_TURN."""
    if not 0 < len(turns) <= MAX_APPEND:
        raise InvalidArgument(
            "BAD_TURN", f"Append 1 to {MAX_APPEND:,} turns at a time, not {len(turns):,}."
        )
    for i, turn in enumerate(turns):
        if turn.role not in ROLES:
            raise InvalidArgument(
                "BAD_TURN", f"Turn {i} has the role {turn.role[:40]!r}; roles are {ROLES}."
            )
        if not turn.content:
            raise InvalidArgument("BAD_TURN", f"Turn {i} has no text.")
        if len(turn.content.encode()) > MAX_TEXT:
            raise InvalidArgument("BAD_TURN", f"Turn {i} has over {MAX_TEXT:,} bytes; split it.")
