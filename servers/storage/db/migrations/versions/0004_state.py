"""Documents, leases and locks."""

import sqlalchemy as sa
from alembic import op

from llmos.servers.storage.db.tables import Int, Key

revision = "0004_state"
down_revision = "0003_data"

_NEWEST = sa.text("replaced IS NULL")
_LEASED = sa.text("replaced IS NULL AND lease <> ''")


def _number(name: str, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, Int, primary_key=key, autoincrement=False, nullable=False)


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, Key, primary_key=True)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def upgrade() -> None:
    """Create the tables."""
    counter = op.create_table(
        "state_counter", _number("id", key=True), _number("revision"), _number("compacted")
    )
    op.bulk_insert(counter, [{"id": 1, "revision": 1, "compacted": 1}])
    op.create_table(
        "state_documents",
        _key("tenant"),
        _key("key"),
        _number("mod_revision", key=True),
        _number("position"),
        _number("create_revision"),
        _number("version"),
        sa.Column("replaced", Int),
        sa.Column("lease", Key, nullable=False),
        _text("content_type"),
        sa.Column("value", sa.LargeBinary, nullable=False),
        _number("size"),
    )
    op.create_index("state_documents_order", "state_documents", ["mod_revision", "position"])
    op.create_index("state_documents_replaced", "state_documents", ["replaced"])
    for name, columns, where, unique in (
        ("state_documents_newest", ["tenant", "key"], _NEWEST, True),
        ("state_documents_lease", ["tenant", "lease"], _LEASED, False),
    ):
        op.create_index(
            name,
            "state_documents",
            columns,
            unique=unique,
            sqlite_where=where,
            postgresql_where=where,
        )
    op.create_table("state_leases", _key("tenant"), _key("id"), _number("ttl_ms"), _text("owner"))
    op.create_table(
        "state_lock_queue",
        _key("tenant"),
        _key("name"),
        _number("token", key=True),
        sa.Column("lease", Key, nullable=False),
        sa.Column("request_id", Key, nullable=False),
        _text("owner"),
        _number("asked_ms"),
    )
    op.create_index(
        "state_lock_queue_request",
        "state_lock_queue",
        ["tenant", "name", "lease", "request_id"],
        unique=True,
    )
    op.create_index("state_lock_queue_lease", "state_lock_queue", ["tenant", "lease"])
    op.create_table(
        "state_requests",
        _key("tenant"),
        _key("request_id"),
        _text("digest"),
        _number("revision"),
        _text("answer"),
    )
    op.create_index("state_requests_revision", "state_requests", ["revision"])
