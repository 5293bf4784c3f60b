"""The audit log's table: one row per mutation, chained by hashes."""

from __future__ import annotations

from sqlalchemy import Column, Index, Table, Text

from llmos.servers.storage.db.tables import Int, Key, metadata

audit_log = Table(
    "audit_log",
    metadata,
    Column("seq", Int, primary_key=True, autoincrement=False),  # 1, 2, 3 ... without gaps
    Column("at_ms", Int, nullable=False),  # Unix time, for people: order is told by seq
    Column("actor", Key, nullable=False),  # tenant
    Column("action", Key, nullable=False),  # e.g. `model.create`
    Column("subject", Key, nullable=False),  # e.g. `smollm2@3`
    Column("detail", Text, nullable=False),  # canonical JSON, see llmos.lib.chain
    Column("previous", Text, nullable=False),  # hash of the entry before, hex
    Column("hash", Text, nullable=False),
    Index("audit_log_subject", "subject"),
    Index("audit_log_action", "action"),
)
