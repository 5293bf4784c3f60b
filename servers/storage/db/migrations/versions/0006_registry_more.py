"""Aliases, tags, leases and the rest of a version's manifest."""

revision = "0006_registry_more"
down_revision = "0005_audit"


def upgrade() -> None:
    """Create the tables."""
