"""Tables of small state: documents with their history, leases, locks, answered requests."""

from __future__ import annotations

from sqlalchemy import Column, Index, LargeBinary, Table, Text, text

from llmos.servers.storage.db.tables import Int, Key, metadata

# Keys are ordered by code point, as Python orders them: the keys with a prefix are a range.
counter = Table(  # one row
    "state_counter",
    metadata,
    Column("id", Int, primary_key=True, autoincrement=False),
    Column("revision", Int, nullable=False),  # of the newest change to documents or locks
    Column("compacted", Int, nullable=False),  # history up to here is gone
)
documents = Table(  # every state of every document since the last compaction
    "state_documents",
    metadata,
    Column("tenant", Key, primary_key=True),
    Column("key", Key, primary_key=True),
    Column("mod_revision", Int, primary_key=True, autoincrement=False),
    Column("position", Int, nullable=False),  # of the change within its transaction
    Column("create_revision", Int, nullable=False),
    Column("version", Int, nullable=False),  # 1, 2, 3 ... since it was created; 0 = deleted
    Column("replaced", Int),  # mod_revision of the next state; NULL for the newest
    Column("lease", Key, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("size", Int, nullable=False),  # bytes of key, content type and value
    Index("state_documents_order", "mod_revision", "position"),
    Index("state_documents_replaced", "replaced"),
    Index(
        "state_documents_newest",
        "tenant",
        "key",
        unique=True,
        sqlite_where=text("replaced IS NULL"),
        postgresql_where=text("replaced IS NULL"),
    ),
    Index(
        "state_documents_lease",
        "tenant",
        "lease",
        sqlite_where=text("replaced IS NULL AND lease <> ''"),
        postgresql_where=text("replaced IS NULL AND lease <> ''"),
    ),
)
leases = Table(
    "state_leases",
    metadata,
    Column("tenant", Key, primary_key=True),
    Column("id", Key, primary_key=True),
    Column("ttl_ms", Int, nullable=False),
    Column("owner", Text, nullable=False),  # for people
)
queue = Table(  # who holds or waits for a lock: the smallest token holds it
    "state_lock_queue",
    metadata,
    Column("tenant", Key, primary_key=True),
    Column("name", Key, primary_key=True),
    Column("token", Int, primary_key=True, autoincrement=False),  # revision of the request
    Column("lease", Key, nullable=False),
    Column("request_id", Key, nullable=False),
    Column("owner", Text, nullable=False),  # for people
    Column("asked_ms", Int, nullable=False),  # Unix time, for people
    Index("state_lock_queue_request", "tenant", "name", "lease", "request_id", unique=True),
    Index("state_lock_queue_lease", "tenant", "lease"),
)
requests = Table(  # answers to requests with an id, for their retries
    "state_requests",
    metadata,
    Column("tenant", Key, primary_key=True),
    Column("request_id", Key, primary_key=True),
    Column("digest", Text, nullable=False),  # of the request: an id is for one request
    Column("revision", Int, nullable=False),
    Column("answer", Text, nullable=False),
    Index("state_requests_revision", "revision"),
)
