"""Walks over what versions were made from, breadth first."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from llmos.servers.storage.db.tables_registry import datasets_used, parents, versions
from llmos.servers.storage.model import Format, Lineage
from llmos.servers.storage.names import parse_ref
from llmos.servers.storage.registry.model import LineageNode, LineageWalk
from llmos.servers.storage.registry.rows import VersionKey, of

MOST = 10_000  # versions of one walk
_AT_A_TIME = 200


def walk(sql: Connection, start: VersionKey, descendants: bool, max_depth: int) -> LineageWalk:
    """Return the versions that one was made from, or that were made from it, and itself first.

    Each is there once, at its smallest distance; max_depth 0 = to the end. A version that was
    deleted is a node without more; the walk goes no further there.
    """
    nodes: list[LineageNode] = []
    seen = {_ref(start)}
    level, depth = [_ref(start)], 0
    while level:
        found = _level(sql, level, depth)
        nodes += found
        made_from = [parent for node in found for parent in node.lineage.parents]
        following = _children(sql, level) if descendants else made_from
        level = [ref for ref in dict.fromkeys(following) if ref not in seen]
        seen.update(level)
        depth += 1
        too_deep = max_depth and depth > max_depth
        if level and (too_deep or len(nodes) + len(level) > MOST):
            return LineageWalk(nodes, truncated=True)
    return LineageWalk(nodes)


def _ref(key: VersionKey) -> str:
    return f"{key[0]}@{key[1]}"


def _level(sql: Connection, refs: Sequence[str], depth: int) -> list[LineageNode]:
    nodes: list[LineageNode] = []
    for start in range(0, len(refs), _AT_A_TIME):
        part = refs[start : start + _AT_A_TIME]
        keys = [(name, version or 0) for name, version in map(parse_ref, part)]
        about = sql.execute(select(versions).where(of(sql, versions, keys)))
        rows = {_ref((r.name, r.version)): r for r in about}
        made_from: dict[str, list[str]] = {}
        trained_on: dict[str, list[str]] = {}
        for table, column, into in (
            (parents, parents.c.parent, made_from),
            (datasets_used, datasets_used.c.dataset, trained_on),
        ):
            wanted = select(table.c.name, table.c.version, column).where(of(sql, table, keys))
            for name, version, other in sql.execute(wanted.order_by(table.c.position)):
                into.setdefault(_ref((name, version)), []).append(other)
        for ref in part:
            row = rows.get(ref)
            if row is None:
                nodes.append(LineageNode(ref, depth, missing=True))
                continue
            lineage = Lineage(
                row.source,
                tuple(made_from.get(ref, ())),
                row.job,
                row.step,
                tuple(trained_on.get(ref, ())),
                row.code,
            )
            node = LineageNode(
                ref, depth, False, lineage, Format(row.format), row.created, row.dtype
            )
            nodes.append(node)
    return nodes


def _children(sql: Connection, refs: Sequence[str]) -> list[str]:
    found: list[str] = []
    for start in range(0, len(refs), _AT_A_TIME):
        part = refs[start : start + _AT_A_TIME]
        made = select(parents.c.name, parents.c.version).where(parents.c.parent.in_(part))
        ordered = made.distinct().order_by(parents.c.name, parents.c.version)
        found += [_ref((row.name, row.version)) for row in sql.execute(ordered)]
    return found
