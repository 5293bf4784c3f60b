"""The audit log: an entry for every mutation, written in the mutation's own transaction."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from llmos.lib import chain
from llmos.lib.chain import Entry, Head
from llmos.servers.storage.db.tables_audit import audit_log

_MOST = 2**63 - 1  # what a database takes
# Made once: they run with every change, and to make one takes longer than to run it.
_ADD = insert(audit_log)
_LAST = select(audit_log.c.seq, audit_log.c.hash).order_by(audit_log.c.seq.desc()).limit(1)


def record(
    sql: Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any]
) -> Head:
    """Append an entry; return the new head. `sql` must be in a write transaction.

    actor: the tenant. action: `noun.verb`, e.g. `model.create`. detail: text, whole numbers,
    truth values, lists and objects of them, no floats; never secrets or contents.
    """
    entry = chain.append(
        head(sql), time.time_ns() // 1_000_000, _clean(actor), action, _clean(subject), detail
    )
    sql.execute(
        _ADD,
        {
            "seq": entry.seq,
            "at_ms": entry.at_ms,
            "actor": entry.actor,
            "action": entry.action,
            "subject": entry.subject,
            "detail": entry.detail,
            "previous": entry.previous,
            "hash": entry.hash,
        },
    )
    return Head(entry.seq, entry.hash)


def head(sql: Connection) -> Head:
    """Return the end of the log."""
    row = sql.execute(_LAST).first()
    return Head(row.seq, row.hash) if row is not None else Head()


def entries(
    sql: Connection,
    after: int,
    limit: int,
    *,
    actor: str = "",
    action: str = "",
    subject: str = "",
    until: int = 0,
    newest: bool = False,
) -> list[Entry]:
    """Return up to `limit` entries after number `after`, in order.

    actor, subject: exactly this one; action: it, or with a dot at its end all that begin so;
    until: none after this number; each "" or 0 = any. newest: the last ones, still in order.
    """
    c, after = audit_log.c, min(after, _MOST)
    actor, action, subject = _clean(actor), _clean(action), _clean(subject)
    order = c.seq.desc() if newest else c.seq
    query = select(audit_log).where(c.seq > after).order_by(order).limit(limit)
    if until:
        query = query.where(c.seq <= until)
    if actor:
        query = query.where(c.actor == actor)
    if action:
        matches = c.action.startswith(action, autoescape=True)
        query = query.where(matches if action.endswith(".") else c.action == action)
    if subject:
        query = query.where(c.subject == subject)
    found = [_entry(row) for row in sql.execute(query)]
    return found[::-1] if newest else found


def _entry(row: Row[Any]) -> Entry:
    return Entry(
        row.seq,
        row.at_ms,
        row.actor,
        row.action,
        row.subject,
        row.detail,
        row.previous,
        row.hash,
    )


def _clean(text: str) -> str:
    """Return text that every database takes: PostgreSQL has no NUL, UTF-8 no lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
