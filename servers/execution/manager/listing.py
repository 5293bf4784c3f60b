"""Storage's versions and the manager's workers as one list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmos.servers.execution.engine.select import engine_for
from llmos.servers.execution.manager.model import State, Version, Worker


@dataclass(frozen=True)
class Row:
    """A line of ListModels: a version, its workers if it has some, and what went wrong last.

    worker: the one that tells of all, a ready one if there is one.
    """

    version: Version
    worker: Worker | None
    state: State
    reason: str = ""
    engine: str = ""
    is_default: bool = False
    workers: Sequence[Worker] = ()


def rows(
    versions: Sequence[Version], workers: Sequence[Worker], why_failed: Callable[[str], str]
) -> list[Row]:
    """Return all of them by name and version; `why_failed` tells why a ref cannot be loaded."""
    loaded: defaultdict[str, list[Worker]] = defaultdict(list)
    for worker in sorted(workers, key=lambda w: w.replica):
        loaded[worker.ref].append(worker)
    known = {v.ref: v for v in versions}
    for worker in workers:  # its version may have been deleted meanwhile
        known.setdefault(worker.ref, Version(worker.name, worker.version, task=worker.task))
    ordered = sorted(known.values(), key=lambda v: (v.name, v.version))
    defaults = {v.name: v.ref for v in ordered}  # the last of a name is its newest version
    for worker in workers:
        if worker.name in worker.keys and worker.state is State.READY:
            defaults[worker.name] = worker.ref
    return [_row(v, loaded[v.ref], why_failed, defaults[v.name]) for v in ordered]


def _row(
    version: Version, workers: Sequence[Worker], why_failed: Callable[[str], str], default: str
) -> Row:
    ready = [w for w in workers if w.state is State.READY]
    worker = next(iter([*ready, *workers]), None)
    if worker is not None:
        state, reason = worker.state, ""
    else:
        reason = why_failed(version.ref)
        state = State.FAILED if reason else State.STORED
    engine = worker.engine if worker is not None else ""
    return Row(
        version=version,
        worker=worker,
        state=state,
        reason=reason,
        engine=engine or engine_for(version.format, version.task),
        is_default=version.ref == default,
        workers=workers,
    )
