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
        self._workers[worker.id] = worker

    def remove(self, worker: Worker) -> None:
        """Forget a worker, unless another has its place by now."""
        if worker in self:
            del self._workers[worker.id]

    def get(self, id: str) -> Worker | None:
        """Return the worker of this name."""
        return self._workers.get(id)

    def __contains__(self, worker: Worker) -> bool:
        """Return whether the worker is (still) the one in its place."""
        return self._workers.get(worker.id) is worker

    def __iter__(self) -> Iterator[Worker]:
        """Yield the workers that there are now, whatever happens meanwhile."""
        return iter([*self._workers.values()])

    def of(self, ref: str) -> list[Worker]:
        """Return a version's workers, the first one first."""
        return sorted((w for w in self if w.ref == ref), key=lambda w: w.replica)

    def ready(self, ref: str) -> list[Worker]:
        """Return those of a version that can serve."""
        return [w for w in self.of(ref) if w.state is State.READY and w.alive()]

    def holder(self, key: str) -> Worker | None:
        """Return a ready worker that a plain name or an alias means."""
        return next((w for w in self if key in w.keys and w.state is State.READY), None)
