"""How calls on a version's workers go, as the kernel counts them: how many, failed, how slow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import grpc

from llmos.api.kernel.v1 import admin_pb2 as pb
from llmos.api.kernel.v1 import admin_pb2_grpc
from llmos.servers.optimizer.job.storage import patiently

_QUANTILE = 0.99


@dataclass(frozen=True)
class Calls:
    """Calls that have ended."""

    served: int = 0
    failed: int = 0
    latency: Sequence[int] = ()  # as PortInfo.latency

    @property
    def timed(self) -> int:
        """Return how many of them have a latency: those that ended well."""
        return sum(self.latency)

    @property
    def p99_ms(self) -> float:
        """Return what 99 of 100 took less than, to within a fifth; 0 without any."""
        left = self.timed * _QUANTILE
        for index, count in enumerate(self.latency):
            left -= count
            if left <= 0 < count:
                return float(0.1 * 2 ** (index / 4))
        return 0.0

    def minus(self, other: Calls) -> Calls:
        """Return those since `other`."""
        counted = list(other.latency) + [0] * len(self.latency)
        return Calls(
            self.served - other.served,
            self.failed - other.failed,
            [count - old for count, old in zip(self.latency, counted, strict=False)],
        )


@dataclass
class Watch:
    """The calls on a version since this was made, through deaths of its workers."""

    ref: str
    since_start: bool = False  # also those before: all that its present workers have had
    _first: dict[tuple[int, str], Calls] = field(default_factory=dict)  # by port and instance
    _last: dict[tuple[int, str], Calls] = field(default_factory=dict)
    _looked: bool = False

    async def look(self, kernel: grpc.aio.Channel) -> Calls:
        """Return all that is known now, the ports that are gone included."""
        stub: admin_pb2_grpc.AdminAsyncStub = admin_pb2_grpc.AdminStub(kernel)

        async def ask() -> pb.ListPortsResponse:
            return await stub.ListPorts(pb.ListPortsRequest(), timeout=10)

        self.take((await patiently(ask)).ports)
        return self.total()

    def take(self, ports: Iterable[pb.PortInfo]) -> None:
        """Take what the kernel says of its ports."""
        for port in ports:
            if any(self.ref in export.keys for export in port.exports):
                now = Calls(int(port.served), int(port.failed), list(port.latency))
                key = (port.port, port.instance)
                old = now if not self._looked and not self.since_start else Calls()
                if now.served < self._last.get(key, now).served:  # counted by a new kernel
                    self._first[key] = Calls()
                self._first.setdefault(key, old)
                self._last[key] = now
        self._looked = True

    def total(self) -> Calls:
        """Return the sum over its workers."""
        parts = [last.minus(self._first[key]) for key, last in self._last.items()]
        longest = max((len(part.latency) for part in parts), default=0)
        return Calls(
            sum(part.served for part in parts),
            sum(part.failed for part in parts),
            [sum(p.latency[i] for p in parts if i < len(p.latency)) for i in range(longest)],
        )
