"""A hash chain of entries: each has the sha256 of the one before and of its own canonical form.

What was written cannot be edited, removed, added or moved without its being found, by anybody who
has the entries; that the end was cut off is found by whoever noted a head (number and hash).

The canonical form is the JSON array [seq, at_ms, actor, action, subject, detail, previous] in
UTF-8, without spaces, object members ordered by name, all but ASCII escaped, without floats (the
part of RFC 8785 that leaves no choice).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmos.lib.errors import DataLoss, InvalidArgument

START = "0" * 64  # the hash before the first entry


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: its last entry's number (0 = empty) and hash (hex)."""

    seq: int = 0
    hash: str = START

    def __str__(self) -> str:
        """Return `SEQ:HASH`."""
        return f"{self.seq}:{self.hash}"

    @staticmethod
    def parse(text: str) -> Head:
        """Read `SEQ:HASH`. Raises InvalidArgument BAD_HEAD."""
        seq, _, digest = text.strip().partition(":")
        if seq.isascii() and seq.isdigit() and len(digest) == 64 and set(digest) <= set(_HEX):
            return Head(int(seq), digest)
        raise InvalidArgument("BAD_HEAD", f"{text[:100]!r} is no head: it must be SEQ:SHA256.")


_HEX = "0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Entry:
    """One mutation. `detail` is canonical JSON of an object; at_ms is Unix time."""

    seq: int
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: str
    previous: str
    hash: str = ""

    def digest(self) -> str:
        """Return the hash that this entry must have."""
        form = [
            self.seq,
            self.at_ms,
            self.actor,
            self.action,
            self.subject,
            json.loads(self.detail),
            self.previous,
        ]
        return hashlib.sha256(canonical(form).encode()).hexdigest()

    def line(self) -> str:
        """Return the entry as a line of an export: a JSON object."""
        return canonical(
            {
                "seq": self.seq,
                "at_ms": self.at_ms,
                "actor": self.actor,
                "action": self.action,
                "subject": self.subject,
                "detail": json.loads(self.detail),
                "previous": self.previous,
                "hash": self.hash,
            }
        )


def canonical(value: Any) -> str:
    """Return the one JSON text of a value. Raises TypeError for floats."""
    _no_floats(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _no_floats(value: Any) -> None:
    if isinstance(value, float):
        raise TypeError(f"{value!r}: an audit entry has no floats, their text is not unique")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{name!r}: members have names")
            _no_floats(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _no_floats(item)


def append(
    head: Head, at_ms: int, actor: str, action: str, subject: str, detail: Mapping[str, Any]
) -> Entry:
    """Return the entry that follows `head`."""
    text = canonical(detail)
    bare = Entry(head.seq + 1, at_ms, actor, action, subject, text, head.hash)
    return Entry(head.seq + 1, at_ms, actor, action, subject, text, head.hash, bare.digest())


def read_line(text: str, number: int) -> Entry:
    """Read a line of an export. Raises DataLoss AUDIT_DAMAGED with the line's number."""
    names = {"seq", "at_ms", "actor", "action", "subject", "detail", "previous", "hash"}
    try:
        row = json.loads(text)
        if not isinstance(row, dict) or row.keys() != names or not isinstance(row["detail"], dict):
            raise ValueError("it is not an audit entry")
        texts = (row[name] for name in ("actor", "action", "subject", "previous", "hash"))
        if not all(isinstance(item, str) for item in texts):
            raise ValueError("a member has another type")
        if type(row["seq"]) is not int or type(row["at_ms"]) is not int:
            raise ValueError("a number is missing")
        row["detail"] = canonical(row["detail"])
        return Entry(**row)
    except (ValueError, TypeError, RecursionError) as exc:
        raise damaged(f"line {number}", f"it does not parse: {str(exc)[:200]}") from exc


def damaged(place: str, why: str) -> DataLoss:
    """Return the error for a chain that is not what was written."""
    return DataLoss("AUDIT_DAMAGED", f"The audit log is not what was written, at {place}: {why}.")


class Verifier:
    """Checks a chain entry by entry; `head` is its end so far."""

    def __init__(self, start: Head | None = None, anchors: Iterable[Head] = ()) -> None:
        """Begin after `start` (the beginning by default); `anchors` must be on the way."""
        self.head = start or Head()
        self._anchors = {anchor.seq: anchor.hash for anchor in anchors if anchor.seq}

    def take(self, entry: Entry) -> None:
        """Check the next entry. Raises DataLoss AUDIT_DAMAGED naming its number."""
        place = f"entry {entry.seq}"
        expected = self.head.seq + 1
        if entry.seq != expected:
            what = "missing or out of order" if entry.seq > expected else "repeated or inserted"
            raise damaged(f"entry {expected}", f"entry {entry.seq} comes there: {what}")
        if entry.previous != self.head.hash:
            raise damaged(place, "it does not follow the entry before it")
        if entry.digest() != entry.hash:
            raise damaged(place, "its content was changed after it was written")
        anchor = self._anchors.pop(entry.seq, entry.hash)
        if anchor != entry.hash:
            raise damaged(place, "it has another hash than the head noted for it")
        self.head = Head(entry.seq, entry.hash)

    def finish(self) -> Head:
        """Return the end. Raises AUDIT_DAMAGED when a noted head lies beyond it: it was cut off."""
        if self._anchors:
            seq = max(self._anchors)
            raise damaged(
                f"entry {self.head.seq + 1}",
                f"the log ends here, but entry {seq} was noted: the end was cut off",
            )
        return self.head
