"""What all tables share. Each area has its tables in `tables_<area>.py`, on this metadata."""

from __future__ import annotations

from sqlalchemy import BigInteger, Connection, Double, Insert, MetaData, Table, Text
from sqlalchemy.dialects import postgresql, sqlite

metadata = MetaData()

# Text that is compared and ordered by its bytes, on both back ends; SQLite does so anyway.
Key = Text().with_variant(Text(collation="C"), "postgresql")
# A 64-bit number; SQLite's INTEGER has as many bits.
Int = BigInteger().with_variant(sqlite.INTEGER(), "sqlite")
# Seconds since 1970, and other 64-bit floating-point numbers.
Real: Double[float] = Double()


def insert_new(sql: Connection, table: Table) -> Insert:
    """Return an INSERT that leaves rows alone whose key is there already."""
    if sql.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()
