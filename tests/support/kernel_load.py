"""Steady load on the simulated world, to measure shares and waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from kernel_clients import Asked, Client
from kernel_invariants import check
from kernel_servers import Plan, Server, Task
from kernel_world import World

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.core.limits import Limits


class Worker(Server):
    """Works on each call as long as its client said; reports a cost where `cost` says one."""

    asks = (pb.CALL_CLASS_UNSPECIFIED,)

    def __init__(self, world: World, plan: Plan, cost: Callable[[float], float] | None) -> None:
        super().__init__(world, plan)
        self.latency = 0.0
        self.done: defaultdict[str, float] = defaultdict(
            float
        )  # seconds, or reported cost, by tenant
        self._cost = cost

    def _start(self, task: Task) -> None:
        self.world.at(
            self.world.sizes.get(task.uid, self.plan.time_s), self._work, task, 0, self.port
        )

    def finish(self, task: Task, code: int = 0, payload: bool = True) -> None:
        size = self.world.sizes.pop(task.uid, self.plan.time_s)
        cost = self._cost(size) if self._cost else 0.0
        self.done[task.tenant] += cost or size
        task.cost = cost
        super().finish(task, code, payload)


class Steady(Client):
    """Keeps a number of calls open from `start` on; sizes (seconds) come from an iterator."""

    def __init__(
        self,
        world: World,
        tenant: str,
        sizes: Iterable[float],
        outstanding: int = 20,
        call_class: int = 0,
        service: str = "sim.Echo",
    ) -> None:
        super().__init__(world, f"client-{tenant}-{call_class}", tenant)
        self.latency = 0.0
        self.waits: list[float] = []  # from OPEN to END
        self._sizes = iter(sizes)
        self._outstanding = outstanding
        self._class = call_class
        self._service = service
        self._since: dict[int, float] = {}
        self.attach()

    def start(self) -> None:
        for _ in range(self._outstanding):
            self._one()

    def _one(self) -> None:
        call = self.ask(self._service, call_class=self._class)
        uid = self.asked[call].uid
        self.world.sizes[uid] = next(self._sizes)
        self._since[uid] = self.world.now

    def answered(self, asked: Asked, envelope: pb.Envelope) -> None:
        super().answered(asked, envelope)
        self.waits.append(self.world.now - self._since.pop(asked.uid))
        self._one()


def world(limits: Limits | None = None) -> World:
    """Return a world that is checked now and then."""
    made = World(1, limits or Limits(ageing_s=1e9, max_queued_per_key=10**6, max_queued=10**6))
    made.judge = lambda: check(made.core, made.now)
    return made


def server(
    made: World,
    credits: int = 1,
    service: str = "sim.Echo",
    calls: str = "",
    time_s: float = 0.01,
    cost: Callable[[float], float] | None = None,
) -> Worker:
    """Attach a worker."""
    worker = Worker(made, Plan(service, credits=credits, calls=calls, time_s=time_s), cost)
    worker.attach()
    return worker


def jain(shares: Iterable[float]) -> float:
    """Return Jain's fairness index: 1 = all the same, 1/n = one has everything."""
    x = list(shares)
    return sum(x) ** 2 / (len(x) * sum(v * v for v in x))
