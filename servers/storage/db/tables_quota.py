"""Quotas: each tenant's limits and usage, and what it was charged for."""

from __future__ import annotations

from sqlalchemy import Column, Table

from llmos.servers.storage.db.tables import Int, Key, metadata

quotas = Table(
    "quotas",
    metadata,
    Column("tenant", Key, primary_key=True),
    Column("limit_bytes", Int, nullable=False),  # 0 = none
    Column("limit_items", Int, nullable=False),  # 0 = none
)
usage = Table(
    "quota_usage",
    metadata,
    Column("tenant", Key, primary_key=True),
    Column("kind", Key, primary_key=True),  # model, dataset, upload, document
    Column("bytes", Int, nullable=False),
    Column("items", Int, nullable=False),
)
charges = Table(  # to be given back to whom it was charged, when the subject goes
    "quota_charges",
    metadata,
    Column("kind", Key, primary_key=True),
    Column("subject", Key, primary_key=True),  # e.g. `smollm2@3`
    Column("tenant", Key, nullable=False),
    Column("bytes", Int, nullable=False),
)
