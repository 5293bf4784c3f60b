"""Data sets."""

revision = "0003_data"
down_revision = "0002_blobs"


def upgrade() -> None:
    """Create the tables."""
