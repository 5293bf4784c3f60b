"""The manager's table of workers."""

from __future__ import annotations

from collections.abc import Iterator

from llmos.servers.execution.manager.model import State, Worker


class Table:
    """Owns which workers there are: loading, ready, and being unloaded."""

    def __init__(self) -> None:
        """Start empty."""
        self._workers: dict[str, Worker] = {}

    def add(self, worker: Worker) -> None:
        """Take a worker in; it replaces the one that had its place."""
        self._workers[worker.ref] = worker

    def remove(self, worker: Worker) -> None:
        """Forget a worker, unless another has its place by now."""
        if self._workers.get(worker.ref) is worker:
            del self._workers[worker.ref]

    def get(self, ref: str) -> Worker | None:
        """Return the worker of a version."""
        return self._workers.get(ref)

    def __contains__(self, worker: Worker) -> bool:
        """Return whether the worker is (still) the one in its place."""
        return self._workers.get(worker.ref) is worker

    def __iter__(self) -> Iterator[Worker]:
        """Yield the workers that there are now, whatever happens meanwhile."""
        return iter([*self._workers.values()])

    def holder(self, key: str) -> Worker | None:
        """Return the ready worker that a plain name or an alias means."""
        return next((w for w in self if key in w.keys and w.state is State.READY), None)
