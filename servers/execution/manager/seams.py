"""What the manager needs from others; each is implemented over gRPC in a module of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmos.api.execution.v1 import zygote_pb2 as pb
from llmos.api.inference.open_inference_pb2 import ModelStatistics
from llmos.servers.execution.manager.model import Version, Worker
from llmos.servers.execution.manager.process import Process


class Catalog(Protocol):
    """Storage."""

    async def resolve(self, ref: str) -> Version:
        """Return the version that `ref` means. Raises NotFound NO_SUCH_MODEL, NO_SUCH_VERSION."""

    async def versions(self) -> list[Version]:
        """Return all versions."""

    async def fetch(self, version: Version) -> Mapping[str, Path]:
        """Return the version's files on this host, the main one first."""

    async def settle(self) -> None:
        """Let go of the versions that no worker has: whoever wants to delete them now may."""


class Grants(Protocol):
    """Memory."""

    async def devices(self) -> list[str]:
        """Return the names of the devices."""

    async def acquire(self, worker: Worker, bytes: int, *, dry_run: bool = False) -> Sequence[str]:
        """Hold `bytes` for a worker; return ids of grants to give up first ([] = it is held).

        dry_run: only ask what would have to go. Raises ResourceExhausted OVER_BUDGET, with a time
        to retry when waiting may help.
        """

    async def release(self, grant: str) -> None:
        """Give room back."""

    async def report(self, workers: Sequence[Worker]) -> None:
        """Tell that the workers' grants are still held, and how they are."""


@dataclass(frozen=True)
class Load:
    """Calls of a worker: running now, and ended so far."""

    running: int
    served: int


class Router(Protocol):
    """The kernel's view of workers (or, without a kernel, the workers themselves)."""

    kernel: str  # address that workers attach to; `none` without a kernel

    async def loads(self) -> Mapping[str, Load]:
        """Return what every attached worker has to do, by the worker's own name."""

    async def serves(self, worker: Worker, key: str) -> bool:
        """Return whether calls for `key` get to the worker now."""

    async def drain(self, worker: Worker) -> int:
        """Give the worker no new calls; return how many it still has."""

    async def describe(self, worker: Worker) -> pb.WorkerInfo:
        """Ask the worker what it is. Raises Unavailable."""

    async def statistics(self, worker: Worker) -> ModelStatistics:
        """Ask the worker what it has done. Raises Unavailable."""

    async def configure(self, worker: Worker, keys: Sequence[str], pinned: bool) -> None:
        """Set the keys beside its ref; returns when calls get there. Raises Unavailable."""

    async def log(self, worker: Worker, level: str) -> None:
        """Let the worker log other levels, as lib.log reads them. Raises Unavailable."""


class Child(Protocol):
    """A worker being born."""

    process: Process

    async def planned(self) -> int:
        """Wait for the bytes it needs. Raises its error; Crashed; ZygoteLost."""

    async def go(self, granted_bytes: int) -> pb.WorkerInfo:
        """Let it load; wait until it serves. Raises its error; Crashed; ZygoteLost."""


class Forge(Protocol):
    """The zygote."""

    async def fork(self, order: pb.WorkerOrder) -> Child:
        """Make a worker. Raises ZygoteLost; Unavailable LOAD_FAILED when there is no zygote."""

    def log(self, level: str) -> None:
        """Log other levels from now on, as lib.log reads them."""

    async def exit_status(self, pid: int) -> int | None:
        """Return how a worker ended (negative: by a signal); None when nobody knows."""


class Crashed(Exception):
    """A worker ended before it was ready, without a word; args[0] is its exit status or None."""


class ZygoteLost(Exception):
    """The zygote died; a new one is being started."""
