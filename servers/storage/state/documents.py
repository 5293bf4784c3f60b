"""Documents in the database."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Sequence

from sqlalchemy import Connection, and_, delete, func, or_, select, update

from llmos.lib.errors import Aborted, InvalidArgument, NotFound, OutOfRange
from llmos.servers.storage import caller
from llmos.servers.storage.db import audit
from llmos.servers.storage.db.tables_state import counter, requests
from llmos.servers.storage.db.tables_state import documents as table
from llmos.servers.storage.state import checks, rows, transactions
from llmos.servers.storage.state.base import Documents
from llmos.servers.storage.state.model import (
    Changes,
    Compare,
    Delete,
    Document,
    DocumentPage,
    Keys,
    Outcome,
    Put,
    Read,
    Relation,
    Target,
    Transaction,
)
from llmos.servers.storage.state.store import Store, stopping
from llmos.servers.storage.state.writer import Writer

MAX_PAGE = 1000
DEFAULT_PAGE = 100
PAGE_BYTES = 4 << 20
BEAT_S = 30.0  # a watch without changes says so often up to where it has seen
KEPT_REQUESTS = 10_000  # revisions for which answers are kept for retries


class LocalDocuments(Documents):
    """Implements Documents."""

    def __init__(self, store: Store, *, beat_s: float = BEAT_S) -> None:
        """Use the store's database."""
        self._store = store
        self._beat_s = beat_s

    async def get(self, key: str, revision: int = 0) -> tuple[Document, int]:
        """See Documents."""
        checks.check_key(key)

        def read(sql: Connection, tenant: str) -> tuple[list[Document], int]:
            at = rows.readable(sql, revision)
            return rows.read(sql, tenant, Keys(key), revision=revision, limit=1), at

        found, at = await self._store.read(read)
        if not found:
            when = f" at revision {at}" if revision else ""
            raise NotFound("NO_SUCH_DOCUMENT", f"There is no document {key!r}{when}.")
        return found[0], at

    async def list(
        self,
        prefix: str = "",
        *,
        revision: int = 0,
        keys_only: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> DocumentPage:
        """See Documents."""
        checks.check_prefix(prefix)
        if not 0 <= page_size <= MAX_PAGE:
            raise InvalidArgument(
                "BAD_PAGE", f"page_size {page_size} is out of range: ask for 1 to {MAX_PAGE}."
            )
        size, after = page_size or DEFAULT_PAGE, ""
        if page_token:
            revision, after = _read_token(page_token, prefix)

        def read(sql: Connection, tenant: str) -> DocumentPage:
            at = rows.readable(sql, revision)
            keys = Keys(prefix, prefix=True)
            names = rows.sized(sql, tenant, keys, revision=revision, after=after, limit=size + 1)
            count, total = 0, 0
            for _, length in names[:size]:
                total += 0 if keys_only else length
                if count and total > PAGE_BYTES:
                    break
                count += 1
            found = rows.read(
                sql,
                tenant,
                keys,
                revision=revision,
                after=after,
                limit=count,
                keys_only=keys_only,
            )
            more = count < len(names)
            return DocumentPage(found, at, _token(prefix, at, found[-1].key) if more else "")

        return await self._store.read(read)

    async def put(
        self, put: Put, if_mod_revision: int | None = None, request_id: str = ""
    ) -> Document:
        """See Documents."""
        outcome = await self._change(put, put.key, if_mod_revision, request_id)
        return outcome.results[0].documents[0]

    async def delete(
        self, keys: Keys, if_mod_revision: int | None = None, request_id: str = ""
    ) -> tuple[int, int]:
        """See Documents."""
        if keys.prefix and if_mod_revision is not None:
            raise InvalidArgument("BAD_KEY", "if_mod_revision is for one key, not for a prefix.")
        outcome = await self._change(Delete(keys), keys.key, if_mod_revision, request_id)
        return outcome.results[0].deleted, outcome.revision

    async def _change(
        self, change: Put | Delete, key: str, expected: int | None, request_id: str
    ) -> Outcome:
        compares = []
        if expected is not None:
            compares = [Compare(key, Target.MOD_REVISION, Relation.EQUAL, expected)]
        otherwise = [Read(Keys(key), 1, keys_only=True)] if compares else []
        outcome = await self.run(Transaction([change], compares, otherwise, request_id))
        if outcome.succeeded:
            return outcome
        there = outcome.results[0].documents
        at = there[0].mod_revision if there else 0
        is_at = f"is at revision {at}" if at else "is not there"
        raise Aborted(
            "CONFLICT",
            f"{key} {is_at}, not {expected or 'new'}: read it again and repeat your change.",
            details={"mod_revision": str(at)},
        )

    async def run(self, transaction: Transaction) -> Outcome:
        """See Documents."""
        checks.check_transaction(transaction)
        return await self._store.write(lambda writer: transactions.run(writer, transaction))

    async def watch(self, keys: Keys, start_revision: int = 0) -> AsyncGenerator[Changes, None]:
        """See Documents."""
        (checks.check_prefix if keys.prefix else checks.check_key)(keys.key)
        hub = self._store.hub
        with hub.subscribe("document", caller.current().tenant, keys) as news:
            newest, compacted = await self._store.read(lambda sql, _: rows.revisions(sql))
            last = min(start_revision, checks.MAX_NUMBER) - 1 if start_revision else newest
            if last < compacted:
                raise rows.gone(start_revision, compacted)
            yield Changes((), min(last, newest))
            while not hub.stopping:
                last = max(last, news.begin())
                try:
                    found, last, more = await self._changes(keys, last)
                except OutOfRange:
                    if news.told > last:  # others' changes were forgotten, none of these
                        continue
                    raise
                if found:
                    yield Changes(found, last)
                if not more and not await news.wait(self._beat_s):
                    yield Changes((), last)
            raise stopping()

    async def _changes(self, keys: Keys, after: int) -> tuple[Sequence[Document], int, bool]:
        return await self._store.read(lambda sql, tenant: rows.changes(sql, tenant, keys, after))

    async def compact(self, revision: int = 0) -> int:
        """See Documents."""
        return await self._store.write(lambda writer: compact(writer, revision))

    async def tidy(self, revisions: int, bytes: int) -> None:
        """Forget what is beyond the last `revisions`, and history beyond so many bytes."""
        target = await self._store.read(lambda sql, _: _target(sql, revisions, bytes))
        if target:
            await self._store.write(lambda writer: compact(writer, target, by="limit"))


def compact(writer: Writer, revision: int, by: str = "request") -> int:
    """Forget history up to a revision (0 = all); return up to where. Raises FUTURE_REVISION."""
    newest, compacted = rows.revisions(writer.sql)
    if revision > newest:
        raise rows.future(revision, newest)
    revision = revision or newest
    if revision <= compacted:
        return compacted
    c = table.c
    deleted = and_(c.version == 0, c.mod_revision <= revision)
    writer.sql.execute(delete(table).where(or_(c.replaced <= revision, deleted)))
    writer.sql.execute(delete(requests).where(requests.c.revision < newest - KEPT_REQUESTS))
    writer.sql.execute(update(counter).values(compacted=revision))
    audit.record(writer.sql, writer.tenant, "history.compact", str(revision), {"by": by})
    return revision


def _target(sql: Connection, revisions: int, limit: int) -> int:
    """Return up to where history is beyond its limits; 0 = nowhere worth the work."""
    newest, compacted = rows.revisions(sql)
    c = table.c
    target = newest - revisions if newest - compacted > revisions * 1.1 else 0
    old = select(func.sum(c.size)).where(c.replaced.is_not(None))
    if (sql.execute(old).scalar() or 0) > limit:
        kept = 0
        query = select(c.replaced, c.size).where(c.replaced.is_not(None))
        for row in sql.execute(query.order_by(c.replaced.desc())):
            kept += row.size
            if kept > limit * 0.9:
                target = max(target, row.replaced)
                break
    return target if target > compacted else 0


def _token(prefix: str, revision: int, after: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([prefix, revision, after]).encode()).decode()


def _read_token(token: str, prefix: str) -> tuple[int, str]:
    try:
        of, revision, after = json.loads(base64.urlsafe_b64decode(token.encode()))
        if of == prefix and type(revision) is int and revision > 0 and isinstance(after, str):
            return revision, after
    except (ValueError, TypeError):
        pass  # the same error
    raise InvalidArgument(
        "BAD_PAGE",
        f"{token[:40]!r} is not a page token of this listing; start from the first page.",
    )
