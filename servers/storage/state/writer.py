"""Changing documents, leases and locks: one Writer is one transaction with one revision."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from llmos.lib.errors import NotFound
from llmos.servers.storage.db import audit, quota
from llmos.servers.storage.db.tables_state import counter, leases, queue
from llmos.servers.storage.db.tables_state import documents as table
from llmos.servers.storage.state import rows
from llmos.servers.storage.state.checks import MAX_NUMBER, bad, plain
from llmos.servers.storage.state.model import Document, Keys, Put

_LISTED = 32  # names that an audit entry lists
# Made once: they run with every change, and to make one takes longer than to run it.
_COUNT = update(counter).values(revision=counter.c.revision + 1).returning(counter.c.revision)
_ADD = insert(table)
_REPLACE = (
    update(table)
    .where(
        table.c.tenant == bindparam("of"),
        table.c.key == bindparam("named"),
        table.c.mod_revision == bindparam("at"),
    )
    .values(replaced=bindparam("by"))
)


class Writer:
    """Collects what the transaction changes; `finish` counts and records it.

    `documents` and `locks` are the names that changed, for those who wait for them.
    """

    def __init__(self, sql: Connection, tenant: str) -> None:
        """Change nothing yet."""
        self.sql = sql
        self.tenant = tenant
        self.documents: list[str] = []
        self.locks: set[str] = set()
        self.changed: list[list[Any]] = []
        self._revision = 0
        self._bytes = 0
        self._items = 0

    @property
    def revision(self) -> int:
        """This transaction's revision; taken when it is first asked for."""
        if not self._revision:
            self._revision = self.sql.execute(_COUNT).scalar_one()
        return self._revision

    @property
    def taken(self) -> int:
        """This transaction's revision; 0 when it needed none."""
        return self._revision

    @property
    def newest(self) -> int:
        """The newest revision, this transaction's if it changed something."""
        return self._revision or rows.revisions(self.sql)[0]

    def put(self, put: Put) -> Document:
        """Create or replace a document. Raises NO_SUCH_LEASE, BAD_TRANSACTION."""
        if put.lease:
            self.require_lease(put.lease)
        before = rows.newest(self.sql, self.tenant, put.key)
        there = before is not None and before.version > 0
        document = Document(
            key=put.key,
            value=put.value,
            content_type=put.content_type,
            lease=put.lease,
            create_revision=before.create_revision if before and there else self.revision,
            mod_revision=self.revision,
            version=before.version + 1 if before and there else 1,
        )
        self._replace(before, document)
        self._bytes += _size(document) - (_size(before) if before and there else 0)
        self._items += 0 if there else 1
        digest = hashlib.sha256(put.value).hexdigest()
        self.changed.append(["put", put.key, len(put.value), digest])
        return replace(document, value=b"")

    def delete(self, keys: Keys) -> int:
        """Delete what is there of these; return how many. Raises BAD_TRANSACTION."""
        count = 0
        while found := rows.read(self.sql, self.tenant, keys, limit=1000):
            for before in found:
                self._replace(before, Document(before.key, mod_revision=self.revision))
                self._bytes -= _size(before)
                self._items -= 1
                self.changed.append(["delete", before.key])
            count += len(found)
            if not keys.prefix:
                break
        return count

    def _replace(self, before: Document | None, document: Document) -> None:
        if before is not None:
            if before.mod_revision == self.revision:
                raise bad(f"it changes {before.key} twice")
            old = {"of": self.tenant, "named": before.key, "at": before.mod_revision}
            self.sql.execute(_REPLACE, old | {"by": self.revision})
        self.sql.execute(
            _ADD,
            {
                "tenant": self.tenant,
                "key": document.key,
                "mod_revision": document.mod_revision,
                "position": len(self.documents),
                "create_revision": document.create_revision,
                "version": document.version,
                "lease": document.lease,
                "content_type": document.content_type,
                "value": document.value,
                "size": _size(document),
            },
        )
        self.documents.append(document.key)

    def require_lease(self, id: str) -> str:
        """Return the lease's owner. Raises NO_SUCH_LEASE."""
        mine = (leases.c.tenant == self.tenant) & (leases.c.id == id)
        found = self.sql.execute(select(leases.c.owner).where(mine)) if plain(id) else None
        owner = found.scalar() if found is not None else None
        if owner is None:
            raise no_such_lease(id)
        return str(owner)

    def end_lease(self, id: str, reason: str) -> bool:
        """Delete a lease and what is attached to it; return whether it was there."""
        mine = (leases.c.tenant == self.tenant) & (leases.c.id == id)
        if not plain(id) or self.sql.execute(delete(leases).where(mine)).rowcount == 0:
            return False
        keys = attached_documents(self.sql, self.tenant, id)
        for key in keys:
            self.delete(Keys(key))
        places = attached_places(self.sql, self.tenant, id)
        for name, token in places:
            self.leave(name, token, reason)
        self.record(
            "lease.end",
            id,
            {"reason": reason, "documents": keys[:_LISTED], "count": len(keys)},
        )
        self.changed.clear()
        return True

    def join(self, name: str, lease: str, owner: str, request_id: str) -> int:
        """Take a place at the end of the queue for a lock; return its token."""
        token = self.revision
        first = self.holder(name) == 0
        self.sql.execute(
            insert(queue).values(
                tenant=self.tenant,
                name=name,
                token=token,
                lease=lease,
                request_id=request_id,
                owner=owner,
                asked_ms=time.time_ns() // 1_000_000,
            )
        )
        self.locks.add(name)
        action = "lock.acquire" if first else "lock.wait"
        self.record(action, name, {"token": token, "lease": lease, "owner": owner})
        return token

    def leave(self, name: str, token: int, reason: str) -> bool:
        """Give a place up; return whether it was there."""
        if token > MAX_NUMBER:
            return False
        held = self.holder(name) == token
        mine = (queue.c.tenant == self.tenant) & (queue.c.name == name) & (queue.c.token == token)
        if self.sql.execute(delete(queue).where(mine)).rowcount == 0:
            return False
        self.locks.add(name)
        action = "lock.release" if held else "lock.leave"
        self.record(action, name, {"token": token, "reason": reason})
        if held and (successor := self.holder(name)):
            self.record("lock.acquire", name, {"token": successor})
        return True

    def holder(self, name: str) -> int:
        """Return the token that holds a lock; 0 = none."""
        mine = (queue.c.tenant == self.tenant) & (queue.c.name == name)
        return self.sql.execute(select(func.min(queue.c.token)).where(mine)).scalar() or 0

    def record(self, action: str, subject: str, detail: dict[str, Any]) -> None:
        """Write an audit entry."""
        audit.record(self.sql, self.tenant, action, subject, detail)

    def finish(self) -> None:
        """Count and record the changes of documents. Raises QUOTA_EXCEEDED."""
        if self._bytes or self._items:
            quota.adjust(self.sql, self.tenant, "document", self._bytes, self._items)
        if self.changed:
            kinds = {kind for kind, *_ in self.changed}
            verb = kinds.pop() if len(kinds) == 1 else "change"
            subject = self.changed[0][1] if len(self.changed) == 1 else ""
            detail = {
                "revision": self.revision,
                "changes": self.changed[:_LISTED],
                "count": len(self.changed),
            }
            self.record(f"document.{verb}", subject, detail)


def no_such_lease(id: str) -> NotFound:
    """Return the error for a lease that ended or never was."""
    return NotFound("NO_SUCH_LEASE", f"There is no lease {id[:100]!r}: it ended; grant a new one.")


def attached_documents(sql: Connection, tenant: str, lease: str) -> list[str]:
    """Return the keys of a lease's documents."""
    c = table.c
    query = select(c.key).where(c.tenant == tenant, c.lease == lease, c.replaced.is_(None))
    return list(sql.execute(query.where(c.lease != "").order_by(c.key)).scalars())


def attached_places(sql: Connection, tenant: str, lease: str) -> Sequence[tuple[str, int]]:
    """Return (lock, token) of a lease's places."""
    query = select(queue.c.name, queue.c.token).where(queue.c.tenant == tenant)
    found = sql.execute(query.where(queue.c.lease == lease).order_by(queue.c.name, queue.c.token))
    return [(row.name, row.token) for row in found]


def _size(document: Document) -> int:
    texts = (document.key, document.content_type)
    return len(document.value) + sum(len(text.encode()) for text in texts)
