"""Picks what a model should see of a conversation. Pure: tokens and scores are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from llmos.lib.errors import OutOfRange
from llmos.servers.memory.sessions.words import Turn

RECENT_SHARE = 0.6  # of what is left for the newest turns, while older ones could be recalled
SUMMARY_SHARE = 0.5  # of what is left, at most, for the summary
AROUND = 8  # tokens that a chat template puts around a turn
LEAST_SCORE = 0.2  # cosine below which nothing is recalled


class Reason(Enum):
    """Why something is part of a context; the values are those of ContextReason."""

    PINNED = 1
    SUMMARY = 2
    RECENT = 3
    RECALLED = 4


@dataclass(frozen=True)
class Item:
    """A part of a context. number: its turn, or 0."""

    role: str
    content: str
    reason: Reason
    tokens: int
    number: int = 0
    score: float = 0.0


@dataclass(frozen=True)
class Text:
    """A text with its tokens, without what is put around it."""

    content: str
    tokens: int


def exchanges(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Cut turns before each of the user's: an answer is of no use without its question."""
    cut: list[list[Turn]] = []
    for turn in turns:
        if turn.role == "user" or not cut:
            cut.append([])
        cut[-1].append(turn)
    return cut


def pick(
    budget: int, system: Text, summary: Text, turns: Sequence[Turn], scores: Mapping[int, float]
) -> list[Item]:
    """Return a context of at most `budget` tokens, in the order for the model.

    turns: all of the session, their tokens counted. scores: cosines by number, for recall.

    First come the system text and pinned turns, and the newest turn; then the summary; then the
    newest turns back to their share; then older exchanges, the nearest first, as a whole; and what
    is left goes to the newest turns again. Raises OutOfRange BUDGET_TOO_SMALL.
    """
    chosen: dict[int, Item] = {}
    left = budget - (system.tokens + AROUND if system.content else 0)
    for turn in turns:
        if turn.pinned:
            chosen[turn.number] = _item(turn, Reason.PINNED)
            left -= turn.tokens + AROUND
    others = [turn for turn in turns if not turn.pinned]
    if others:
        chosen[others[-1].number] = _item(others[-1], Reason.RECENT)
        left -= others[-1].tokens + AROUND
    if left < 0:
        raise OutOfRange(
            "BUDGET_TOO_SMALL",
            f"What is pinned and the newest turn take {budget - left:,} tokens and the budget is "
            f"{budget:,}; raise it or unpin something.",
        )
    summarised = bool(summary.content) and summary.tokens + AROUND <= left * SUMMARY_SHARE
    if summarised:
        left -= summary.tokens + AROUND
    near = {n: s for n, s in scores.items() if s >= LEAST_SCORE}
    share = int(left * RECENT_SHARE) if near else left
    left -= share - _recent(others[:-1], share, chosen)
    left = _recall(others, near, left, chosen)
    _recent(others[:-1], left, chosen)
    items = [chosen[number] for number in sorted(chosen)]
    if summarised:
        items.insert(0, _text(summary, Reason.SUMMARY))
    if system.content:
        items.insert(0, _text(system, Reason.PINNED))
    return items


def _recent(turns: Sequence[Turn], room: int, chosen: dict[int, Item]) -> int:
    """Choose the newest turns without a gap; return the room that is left."""
    for turn in reversed(turns):
        if turn.number in chosen:
            continue
        if turn.tokens + AROUND > room:
            break
        chosen[turn.number] = _item(turn, Reason.RECENT)
        room -= turn.tokens + AROUND
    return room


def _recall(
    turns: Sequence[Turn], near: Mapping[int, float], room: int, chosen: dict[int, Item]
) -> int:
    """Choose the exchanges with the nearest turns; return the room that is left."""
    scored = [
        (max(near.get(turn.number, 0.0) for turn in exchange), exchange)
        for exchange in exchanges(turns)
    ]
    for score, exchange in sorted(scored, key=lambda pair: -pair[0]):
        new = [turn for turn in exchange if turn.number not in chosen]
        needed = sum(turn.tokens + AROUND for turn in new)
        if not score or not new or needed > room:
            continue
        for turn in new:
            chosen[turn.number] = _item(turn, Reason.RECALLED, near.get(turn.number, score))
        room -= needed
    return room


def _item(turn: Turn, reason: Reason, score: float = 0.0) -> Item:
    return Item(turn.role, turn.content, reason, turn.tokens + AROUND, turn.number, score)


def _text(text: Text, reason: Reason) -> Item:
    return Item("system", text.content, reason, text.tokens + AROUND)
