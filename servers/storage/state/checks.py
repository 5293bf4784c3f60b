"""What keys, values, leases and transactions may be."""

from __future__ import annotations

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.state.model import Delete, Put, Read, Target, Transaction

MAX_KEY = 512  # bytes
MAX_VALUE = 1 << 20
MAX_TYPE = 128
MAX_ID = 128
MAX_OWNER = 256
MAX_OPERATIONS = 128
MAX_TRANSACTION = 8 << 20  # bytes of values
MAX_NUMBER = 2**63 - 1  # what a database takes
MAX_READ = 1000  # documents
MAX_WAIT_MS = 365 * 86_400_000
MIN_TTL_MS, MAX_TTL_MS = 100, 86_400_000


def check_key(key: str) -> None:
    """Raise BAD_KEY unless `key` can name a document or a lock."""
    if not key:
        raise InvalidArgument("BAD_KEY", "The key is empty; give it a name, e.g. apps/chat/theme.")
    check_prefix(key)


def check_prefix(prefix: str) -> None:
    """Raise BAD_KEY unless a key can begin so."""
    if len(prefix) > MAX_KEY or len(prefix.encode("utf-8", "replace")) > MAX_KEY:
        raise InvalidArgument(
            "BAD_KEY", f"The key {prefix[:40]!r}... is over {MAX_KEY} bytes; use a shorter one."
        )
    if not plain(prefix):
        raise InvalidArgument(
            "BAD_KEY", f"The key {prefix!r} has control characters; leave them out."
        )


def plain(text: str) -> bool:
    """Return whether a text has neither control characters nor lone surrogates."""
    return not any(c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in text)


def check_put(put: Put) -> None:
    """Raise BAD_KEY or TOO_LARGE unless the document can be stored."""
    check_key(put.key)
    if len(put.value) > MAX_VALUE:
        raise InvalidArgument(
            "TOO_LARGE",
            f"The value of {put.key} has {len(put.value):,} bytes, at most {MAX_VALUE:,} are "
            "allowed; store it as a data set or a blob and keep its name here.",
        )
    if len(put.content_type.encode()) > MAX_TYPE or not plain(put.content_type):
        raise InvalidArgument(
            "TOO_LARGE", f"The content type of {put.key} is over {MAX_TYPE} bytes of plain text."
        )


def check_id(id: str, what: str = "lease") -> None:
    """Raise BAD_LEASE (or BAD_REQUEST_ID) unless `id` can be kept."""
    if len(id) > MAX_ID or not plain(id):
        raise InvalidArgument(
            f"BAD_{what.upper()}",
            f"The {what.replace('_', ' ')} {id[:40]!r} is over {MAX_ID} characters of plain text.",
        )


def shorten(owner: str) -> str:
    """Return an owner's name as it is kept: at most MAX_OWNER bytes of plain text."""
    text = "".join(c if plain(c) else " " for c in owner)
    return text.encode()[:MAX_OWNER].decode("utf-8", "ignore")


def check_ttl(ttl_ms: int) -> None:
    """Raise BAD_LEASE unless a lease can live so long."""
    if not MIN_TTL_MS <= ttl_ms <= MAX_TTL_MS:
        raise InvalidArgument(
            "BAD_LEASE",
            f"ttl_ms {ttl_ms} is out of range: {MIN_TTL_MS} to {MAX_TTL_MS} milliseconds.",
        )


def check_transaction(transaction: Transaction) -> None:
    """Raise BAD_KEY, TOO_LARGE or BAD_TRANSACTION unless all of it could be done."""
    check_id(transaction.request_id, "request_id")
    if len(transaction.compares) > MAX_OPERATIONS:
        raise bad(f"it has {len(transaction.compares)} compares, at most {MAX_OPERATIONS} may be")
    for compare in transaction.compares:
        check_key(compare.key)
        if (compare.target is Target.VALUE) != isinstance(compare.given, bytes):
            raise bad(f"the compare of {compare.key} has no value of its kind")
    for operations in (transaction.then, transaction.otherwise):
        if len(operations) > MAX_OPERATIONS:
            raise bad(f"it has {len(operations)} operations, at most {MAX_OPERATIONS} may be")
        size = 0
        for operation in operations:
            match operation:
                case Put():
                    check_put(operation)
                    size += len(operation.value)
                case Read(limit=limit) if not 1 <= limit <= MAX_READ:
                    raise bad(f"it reads {limit} documents, 1 to {MAX_READ} may be")
                case Delete(keys) | Read(keys):
                    (check_prefix if keys.prefix else check_key)(keys.key)
        if size > MAX_TRANSACTION:
            raise bad(f"its values have {size:,} bytes, at most {MAX_TRANSACTION:,} may be")


def bad(why: str) -> InvalidArgument:
    """Return the error for a transaction that cannot be done."""
    return InvalidArgument("BAD_TRANSACTION", f"The transaction is not valid: {why}.")
