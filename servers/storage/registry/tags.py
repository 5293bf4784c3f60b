"""Tags of versions: keys with values, for people and searches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, delete, insert, select

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.db.tables_registry import tags
from llmos.servers.storage.names import LONGEST_TAG, check_tag, check_text
from llmos.servers.storage.registry.rows import VersionKey

MOST = 64  # tags of a version


def check(added: Mapping[str, str], removed: Iterable[str] = ()) -> None:
    """Raise InvalidArgument BAD_TAG unless these are tags."""
    for key, value in added.items():
        check_tag(key)
        check_text(value, "value of a tag", LONGEST_TAG, "BAD_TAG")
    for key in removed:
        check_tag(key)
    if len(added) > MOST:
        raise _too_many(len(added))


def change(
    sql: Connection, version: VersionKey, added: Mapping[str, str], removed: Iterable[str]
) -> dict[str, str]:
    """Change the tags of an existing version; return all it has then. Raises BAD_TAG."""
    check(added, removed)
    own = (tags.c.name == version[0]) & (tags.c.version == version[1])
    for key in {*added, *removed}:
        sql.execute(delete(tags).where(own, tags.c.key == key))
    key_of = {"name": version[0], "version": version[1]}
    if added:
        sql.execute(insert(tags), [key_of | {"key": k, "value": v} for k, v in added.items()])
    there = {
        row.key: row.value for row in sql.execute(select(tags).where(own).order_by(tags.c.key))
    }
    if len(there) > MOST:
        raise _too_many(len(there))
    return there


def _too_many(count: int) -> InvalidArgument:
    return InvalidArgument(
        "BAD_TAG", f"{count} tags are too many: a version has up to {MOST}; remove some."
    )
