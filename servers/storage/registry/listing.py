"""Pages of versions, by name and newest first, and their filters."""

from __future__ import annotations

from sqlalchemy import Connection, Select, exists, func, select

from llmos.servers.storage.db.tables_registry import models, tags, versions
from llmos.servers.storage.model import Filters
from llmos.servers.storage.names import LONGEST_TAG, check_name, check_tag, check_text
from llmos.servers.storage.registry import pages
from llmos.servers.storage.registry.rows import VersionKey


def page(
    sql: Connection, name: str, filters: Filters, size: int, token: str
) -> tuple[list[VersionKey], str]:
    """Return the keys of a page of up to `size` versions (0 = 100), and the next page's token.

    A page begins right after the last version of the one before, by name and number: what is
    registered or deleted meanwhile shifts nothing. Raises BAD_PAGE, BAD_NAME, BAD_TAG.
    """
    size = pages.page_size(size)
    wanted, listing = _filtered(name, filters)
    if token:
        last, version = pages.read_token(token, listing, str, int)
        # In this form the index finds the place: name >= x, instead of name > x OR ...
        wanted = wanted.where(
            versions.c.name >= last, (versions.c.name > last) | (versions.c.version < version)
        )
    ordered = wanted.order_by(versions.c.name, versions.c.version.desc()).limit(size + 1)
    keys = [(row.name, row.version) for row in sql.execute(ordered)]
    more = pages.token(listing, *keys[size - 1]) if len(keys) > size else ""
    return keys[:size], more


def _filtered(name: str, filters: Filters) -> tuple[Select[tuple[str, int]], object]:
    """Return what to select, and what tells this listing from others."""
    wanted = select(versions.c.name, versions.c.version)
    if name:
        wanted = wanted.where(versions.c.name == check_name(name))
    if filters.task:
        wanted = wanted.where(versions.c.task == int(filters.task))
    if filters.format:
        wanted = wanted.where(versions.c.format == int(filters.format))
    if filters.search:
        check_text(filters.search, "part of a name", 128, "BAD_NAME")
        inside = func.lower(models.c.name).contains(filters.search.lower(), autoescape=True)
        # Among the names first: they are few where versions are many.
        wanted = wanted.where(versions.c.name.in_(select(models.c.name).where(inside)))
    for key, value in filters.tags.items():
        has = exists().where(
            tags.c.name == versions.c.name,
            tags.c.version == versions.c.version,
            tags.c.key == check_tag(key),
        )
        if value:
            has = has.where(tags.c.value == check_text(value, "value", LONGEST_TAG, "BAD_TAG"))
        wanted = wanted.where(has)
    kinds = [int(filters.task), int(filters.format)]
    return wanted, ["versions", name, kinds, sorted(filters.tags.items()), filters.search]
