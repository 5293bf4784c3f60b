"""After a restore no revision or token is given a second time."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest

from llmos.lib.errors import OutOfRange
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.state.local import LocalState
from llmos.servers.storage.state.model import Keys, Put
from llmos.servers.storage.state.rows import restored


async def test_revisions_and_tokens_jump_ahead(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    state = LocalState(database)
    try:
        before = await state.documents.put(Put("k", b"1"))
        await state.leases.grant(60_000, "l")
        token = await state.locks.acquire("lock", "l")
        with database.write() as sql:
            restored(sql)
        assert (await state.documents.get("k"))[0].mod_revision == before.mod_revision
        assert await state.locks.acquire("other", "l") > token + 10**9
        with pytest.raises(OutOfRange) as caught:
            async with aclosing(state.documents.watch(Keys("k"), token + 100)) as watch:
                await anext(watch)
        assert caught.value.reason == "COMPACTED"
    finally:
        state.close()
        database.close()
