"""What a reference means: a version by number, by alias, or the newest of its name."""

from __future__ import annotations

import difflib

from sqlalchemy import Connection, select

from llmos.lib.errors import NotFound
from llmos.servers.storage.db.tables_registry import aliases, versions
from llmos.servers.storage.names import check_name, short, split_ref

_LISTED = 8


def find(sql: Connection, ref: str) -> tuple[str, int]:
    """Return (name, version) of an existing version.

    Raises BAD_NAME, NO_SUCH_MODEL with near names, NO_SUCH_VERSION and NO_SUCH_ALIAS with those
    there are.
    """
    name, which = split_ref(ref)
    if isinstance(which, str):
        means = select(aliases.c.version).where(aliases.c.name == name, aliases.c.alias == which)
        found = sql.execute(means).scalar()
    else:
        wanted = select(versions.c.version).where(versions.c.name == name)
        if which is not None:
            wanted = wanted.where(versions.c.version == which)
        found = sql.execute(wanted.order_by(versions.c.version.desc()).limit(1)).scalar()
    if found is not None:
        return name, found
    require_model(sql, name)
    if isinstance(which, str):
        raise no_such_alias(sql, name, which)
    newest = (
        select(versions.c.version)
        .where(versions.c.name == name)
        .order_by(versions.c.version.desc())
        .limit(_LISTED + 1)
    )
    there = _some([str(number) for number in sql.execute(newest).scalars()])
    raise NotFound("NO_SUCH_VERSION", f"Model {name} has no version {which}; it has {there}.")


def require_model(sql: Connection, name: str) -> None:
    """Raise NotFound NO_SUCH_MODEL, with near names, unless a version has this name."""
    check_name(name)
    if sql.execute(select(versions.c.name).where(versions.c.name == name).limit(1)).first():
        return
    names = list(sql.execute(select(versions.c.name).distinct()).scalars())
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"near names: {', '.join(near)}" if near else "`llmos-ctl model ls` lists all"
    raise NotFound("NO_SUCH_MODEL", f"There is no model {short(name)}; {hint}.")


def no_such_alias(sql: Connection, name: str, alias: str) -> NotFound:
    """Return the error for an alias that a model does not have."""
    own = select(aliases.c.alias).where(aliases.c.name == name).order_by(aliases.c.alias)
    there = _some(list(sql.execute(own.limit(_LISTED + 1)).scalars())) or "none"
    return NotFound(
        "NO_SUCH_ALIAS",
        f"Model {name} has no alias {alias}; it has {there}. Make it: "
        f"llmos-ctl model alias set {name}@VERSION {alias}",
    )


def _some(items: list[str]) -> str:
    return ", ".join(items[:_LISTED]) + (", ..." if len(items) > _LISTED else "")
