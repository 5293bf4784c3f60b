"""Whether this store is encrypted, and by which key: told at the start, not at the first read."""

from __future__ import annotations

from sqlalchemy import insert, select

from llmos.servers.storage.crypt.keys import KeyRing, key_needed
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.db.tables_blobs import upkeep

NAME = "key check"  # the row that holds a wrapped key of nothing: whoever unwraps it has the key


def check(db: Database, keys: KeyRing | None) -> None:
    """Remember that the store is encrypted, or check that the key file has its key.

    Raises FailedPrecondition KEY_NEEDED, WRONG_KEY, DataLoss KEY_DAMAGED.
    """
    with db.read() as sql:
        stored = sql.execute(select(upkeep.c.value).where(upkeep.c.name == NAME)).scalar()
    if stored is None:
        if keys is not None:
            with db.write() as sql:
                sql.execute(insert(upkeep).values(name=NAME, value=keys.new(NAME)[1].hex()))
    elif keys is None:
        raise key_needed()
    else:
        keys.unwrap(bytes.fromhex(stored), NAME)
