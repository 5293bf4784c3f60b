"""The audit log's chain: whatever is changed later is found, with its place."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, update

from llmos.lib.chain import Entry, Head, Verifier, append, read_line
from llmos.lib.errors import DataLoss, InvalidArgument
from llmos.servers.storage.db import audit
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables_audit import audit_log
from llmos.servers.storage.ledger import AuditLog


def make(count: int) -> list[Entry]:
    entries: list[Entry] = []
    for number in range(count):
        head = Head(entries[-1].seq, entries[-1].hash) if entries else Head()
        detail = {"number": number, "nested": [True, None, {"é": "ü"}]}
        entries.append(append(head, 1_700_000_000_000 + number, "local", "a.b", "s", detail))
    return entries


def verify(entries: Sequence[Entry], *anchors: Head) -> Head:
    verifier = Verifier(anchors=anchors)
    for entry in entries:
        verifier.take(entry)
    return verifier.finish()


def test_an_intact_chain_passes_and_survives_its_text() -> None:
    entries = make(20)
    head = Head(20, entries[-1].hash)
    assert verify(entries) == head
    again = [read_line(entry.line(), i) for i, entry in enumerate(entries, 1)]
    assert again == entries
    assert verify(again, head, Head(7, entries[6].hash)) == head
    part = Verifier(Head(10, entries[9].hash))
    for entry in entries[10:]:
        part.take(entry)
    assert part.finish() == head
    assert Head.parse(str(head)) == head


TAMPERINGS: dict[str, Callable[[list[Entry]], list[Entry]]] = {
    "edited": lambda e: [*e[:4], replace(e[4], subject="other"), *e[5:]],
    "detail": lambda e: [*e[:4], replace(e[4], detail='{"number":5}'), *e[5:]],
    "time": lambda e: [*e[:4], replace(e[4], at_ms=1), *e[5:]],
    "rehashed": lambda e: [
        *e[:4],
        replace(e[4], actor="x", hash=replace(e[4], actor="x").digest()),
        *e[5:],
    ],
    "deleted": lambda e: e[:4] + e[5:],
    "swapped": lambda e: [*e[:4], e[5], e[4], *e[6:]],
    "repeated": lambda e: [*e[:5], *e[4:]],
    "renumbered": lambda e: e[:4] + [replace(x, seq=x.seq - 1) for x in e[5:]],
}


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_tampering_is_found_with_its_place(kind: str) -> None:
    with pytest.raises(DataLoss) as caught:
        verify(TAMPERINGS[kind](make(12)))
    assert caught.value.reason == "AUDIT_DAMAGED"
    assert "entry 5" in str(caught.value) or "entry 6" in str(caught.value)


def test_a_cut_end_is_found_by_a_noted_head() -> None:
    entries = make(10)
    noted = Head(9, entries[8].hash)
    verify(entries[:9], noted)
    verify(entries[:8])  # nobody can know without a head
    with pytest.raises(DataLoss, match="cut off"):
        verify(entries[:8], noted)
    other = [*make(8), append(Head(8, entries[7].hash), 5, "x", "y", "z", {})]
    with pytest.raises(DataLoss, match="entry 9"):
        verify(other, noted)  # the end was written anew


@given(st.integers(0, 11), st.integers(0, 10_000), st.integers(0, 255))
def test_any_changed_byte_of_an_export_is_found(number: int, place: int, byte: int) -> None:
    lines = [entry.line() for entry in make(12)]
    raw = bytearray(lines[number].encode())
    place %= len(raw)
    if raw[place] == byte:
        return
    raw[place] = byte
    try:
        lines[number] = raw.decode()
        changed = [read_line(line, i) for i, line in enumerate(lines, 1)]
    except (DataLoss, UnicodeDecodeError):
        return
    if changed == make(12):
        return  # the same JSON written in another way, e.g. a space
    with pytest.raises(DataLoss):
        verify(changed, Head(12, make(12)[-1].hash))


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "{", '{"seq": 1}', "null", "[" * 5000, '{"seq":1e999}']
)
def test_lines_that_are_no_entries(text: str) -> None:
    with pytest.raises(DataLoss) as caught:
        read_line(text, 7)
    assert "line 7" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_bad_heads_and_floats() -> None:
    for text in ("", "5", "5:abc", "x:" + "0" * 64, "5:" + "g" * 64):
        with pytest.raises(InvalidArgument):
            Head.parse(text)
    with pytest.raises(TypeError):
        append(Head(), 1, "a", "b", "c", {"ratio": [0.5]})


async def test_a_changed_database_is_found(tmp_path: Path) -> None:
    database = Database(tmp_path / "audit.db")
    try:
        with database.write() as sql:
            for number in range(1200):  # more than one piece
                audit.record(sql, "local", "model.create", f"m@{number}", {"number": number})
        log = AuditLog(database)
        head = await log.verify()
        assert head.seq == 1200
        async for entries, total in log.export(1199):
            assert ([entry.subject for entry in entries], total) == (["m@1199"], 1200)
        victim = random.Random(4).randrange(2, 1199)
        c = audit_log.c
        for change, place in (
            (update(audit_log).where(c.seq == victim).values(subject="m@0"), victim),
            (delete(audit_log).where(c.seq == victim), victim),
            (delete(audit_log).where(c.seq > 1190), 1191),
        ):
            with pytest.raises(ZeroDivisionError), database.write() as sql:
                sql.execute(change)
                found = list(audit.entries(sql, 0, 5000))
                with pytest.raises(DataLoss, match=f"entry {place}"):
                    verify(found, head)
                raise ZeroDivisionError  # undo it
        assert await log.verify([head]) == head
        page, more = await log.entries(newest=True, page_size=3, action="model.")
        assert [e.seq for e in page] == [1198, 1199, 1200] and not more
        page, more = await log.entries(after=10, page_size=3, subject="m@500")
        assert [e.seq for e in page] == [501] and not more
    finally:
        database.close()
