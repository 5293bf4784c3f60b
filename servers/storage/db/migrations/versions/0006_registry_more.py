"""Aliases, tags, leases, signatures and the rest of a version's manifest."""

import sqlalchemy as sa
from alembic import op

from llmos.servers.storage.db.tables import Int, Key, Real

revision = "0006_registry_more"
down_revision = "0005_audit"


def _of_version(goes_with_it: bool) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["name", "version"],
        ["versions.name", "versions.version"],
        ondelete="CASCADE" if goes_with_it else None,
    )


def _of(table: str, *columns: sa.schema.SchemaItem) -> None:
    """Create a table of things that go with their version."""
    op.create_table(
        table,
        sa.Column("name", Key, primary_key=True),
        sa.Column("version", Int, primary_key=True, autoincrement=False),
        *columns,
        _of_version(True),
    )


def upgrade() -> None:
    """Create the tables."""
    for column in ("tokenizer", "chat_template", "code"):
        op.add_column("versions", sa.Column(column, sa.Text, nullable=False, server_default=""))
    newest = sa.text("version DESC")
    op.create_index("versions_newest", "versions", ["name", newest])
    op.create_index("versions_task", "versions", ["task", "name", newest])
    op.create_index("versions_format", "versions", ["format", "name", newest])
    _of(
        "datasets_used",
        sa.Column("position", Int, primary_key=True, autoincrement=False),
        sa.Column("dataset", Key, nullable=False),
    )
    op.create_index("datasets_used_dataset", "datasets_used", ["dataset"])
    _of("tags", sa.Column("key", Key, primary_key=True), sa.Column("value", Key, nullable=False))
    op.create_index("tags_key_value", "tags", ["key", "value"])
    _of(
        "signatures",
        sa.Column("key_sha256", Key, primary_key=True),
        sa.Column("bundle", sa.LargeBinary, nullable=False),
        sa.Column("added", Real, nullable=False),
    )
    op.create_table(
        "aliases",
        sa.Column("name", Key, primary_key=True),
        sa.Column("alias", Key, primary_key=True),
        sa.Column("version", Int, nullable=False),
        sa.Column("revision", Int, nullable=False),
        _of_version(False),
    )
    op.create_index("aliases_version", "aliases", ["name", "version"])
    op.create_table(
        "alias_moves",
        sa.Column("revision", Int, primary_key=True, autoincrement=False),
        sa.Column("name", Key, nullable=False),
        sa.Column("alias", Key, nullable=False),
        sa.Column("kind", Int, nullable=False),
        sa.Column("version", Int, nullable=False),
        sa.Column("previous", Int, nullable=False),
        sa.Column("replaced", Int, nullable=False),
        sa.Column("back", Int, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("at", Real, nullable=False),
    )
    op.create_index("alias_moves_alias", "alias_moves", ["name", "alias", "revision"])
    op.create_table(
        "version_leases",
        sa.Column("id", Key, primary_key=True),
        sa.Column("name", Key, nullable=False),
        sa.Column("version", Int, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("ttl_s", Real, nullable=False),
        sa.Column("boot", sa.Text, nullable=False),
        sa.Column("until", Real, nullable=False),
        sa.Column("request_id", Key, unique=True),
        _of_version(False),
    )
    op.create_index("version_leases_version", "version_leases", ["name", "version"])
