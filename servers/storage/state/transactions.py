"""Running transactions: compares, operations, and the answers kept for retries."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import operator
from collections.abc import Callable
from typing import Any

from sqlalchemy import insert, select

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.db.tables_state import requests
from llmos.servers.storage.state import rows
from llmos.servers.storage.state.checks import MAX_TRANSACTION, bad
from llmos.servers.storage.state.model import (
    Compare,
    Delete,
    Document,
    Operation,
    Outcome,
    Put,
    Read,
    Relation,
    Result,
    Target,
    Transaction,
)
from llmos.servers.storage.state.writer import Writer

_RELATIONS: dict[Relation, Callable[[Any, Any], bool]] = {
    Relation.EQUAL: operator.eq,
    Relation.NOT_EQUAL: operator.ne,
    Relation.LESS: operator.lt,
    Relation.GREATER: operator.gt,
}


def run(writer: Writer, transaction: Transaction) -> Outcome:
    """Run a checked transaction, or return the answer to its first attempt.

    Raises NO_SUCH_LEASE, BAD_TRANSACTION, REQUEST_ID_REUSED.
    """
    if found := _answered(writer, transaction):
        return found
    succeeded = all(_holds(writer, compare) for compare in transaction.compares)
    operations = transaction.then if succeeded else transaction.otherwise
    results, size = [], 0
    for operation in operations:
        result = _do(writer, operation)
        size += sum(len(document.value) for document in result.documents)
        if size > MAX_TRANSACTION:
            raise bad(f"it reads over {MAX_TRANSACTION:,} bytes")
        results.append(result)
    outcome = Outcome(succeeded, results, writer.newest)
    if transaction.request_id:
        _keep(writer, transaction, outcome)
    return outcome


def _holds(writer: Writer, compare: Compare) -> bool:
    found = rows.newest(writer.sql, writer.tenant, compare.key)
    document = found if found is not None and found.version else Document(compare.key)
    relation = _RELATIONS[compare.relation]
    match compare.target:
        case Target.VALUE:
            return document.version > 0 and relation(document.value, compare.given)
        case Target.VERSION:
            return relation(document.version, compare.given)
        case Target.CREATE_REVISION:
            return relation(document.create_revision, compare.given)
        case Target.MOD_REVISION:
            there = document.mod_revision if document.version else 0
            return relation(there, compare.given)


def _do(writer: Writer, operation: Operation) -> Result:
    match operation:
        case Put():
            return Result((writer.put(operation),))
        case Delete(keys):
            return Result(deleted=writer.delete(keys))
        case Read(keys, limit, keys_only):
            found = rows.read(writer.sql, writer.tenant, keys, limit=limit, keys_only=keys_only)
            return Result(tuple(found))


def _answered(writer: Writer, transaction: Transaction) -> Outcome | None:
    if not transaction.request_id:
        return None
    mine = (requests.c.tenant == writer.tenant) & (requests.c.request_id == transaction.request_id)
    row = writer.sql.execute(select(requests.c.digest, requests.c.answer).where(mine)).first()
    if row is None:
        return None
    if row.digest != _digest(transaction):
        raise InvalidArgument(
            "REQUEST_ID_REUSED",
            f"The request id {transaction.request_id!r} came with another request before; use a "
            "new one for each.",
        )
    return _outcome(json.loads(row.answer))


def _keep(writer: Writer, transaction: Transaction, outcome: Outcome) -> None:
    writer.sql.execute(
        insert(requests).values(
            tenant=writer.tenant,
            request_id=transaction.request_id,
            digest=_digest(transaction),
            revision=outcome.revision,
            answer=json.dumps(dataclasses.asdict(outcome), default=_text),
        )
    )


def _digest(transaction: Transaction) -> str:
    return hashlib.sha256(repr(transaction).encode()).hexdigest()


def _text(value: object) -> str:
    if not isinstance(value, bytes):
        raise TypeError(value)
    return base64.b64encode(value).decode()


def _outcome(kept: dict[str, Any]) -> Outcome:
    results = [
        Result(
            tuple(Document(**{**d, "value": base64.b64decode(d["value"])}) for d in r["documents"]),
            r["deleted"],
        )
        for r in kept["results"]
    ]
    return Outcome(kept["succeeded"], results, kept["revision"])
