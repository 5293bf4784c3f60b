"""A random life in the simulated world: clients of several tenants, servers, and accidents."""

from __future__ import annotations

from kernel_clients import Client
from kernel_invariants import check, check_empty, expect
from kernel_servers import Manager, Plan, Server
from kernel_world import World

from llmos.kernel.core.events import CancelRequested, DrainRequested
from llmos.kernel.core.limits import Limits

STALL_MS = 1000
PLANS = (
    Plan("sim.A", credits=24, calls="sim.B"),
    Plan("sim.B", credits=8, calls="sim.C", time_s=0.01),
    Plan("sim.C", credits=4, time_s=0.01, costs=True),
    Plan("sim.Echo", keys=("", "x"), credits=8, stall_ms=STALL_MS),
    Plan("sim.Echo", keys=("", "y"), credits=5, stall_ms=STALL_MS, costs=True),
    Plan("sim.Flaky", credits=3),
)
KEYS = (*(f"sound{i}" for i in range(6)), *(f"model{i}" for i in range(6)), "sound0@1", "liar")
TARGETS = (
    ("sim.A", ("",)),
    ("sim.B", ("",)),
    ("sim.C", ("",)),
    ("sim.Echo", ("", "", "", "x", "y")),
    ("sim.Echo", ("",)),
    ("sim.Flaky", ("",)),
    ("sim.Model", KEYS),
    ("sim.Model", KEYS),
)
EVERYTHING = ("sim.Echo", "sim.Model", "sim.Flaky")  # services with all methods
METHODS = ("Idem", "Idem", "Once", "Stream", "Resume", "Collect")
LIMITS = Limits(
    absence_grace_s=5.0,
    startup_grace_s=1.0,
    max_queued=1000,
    max_queued_per_key=200,
    ageing_s=3.0,
)


class Chaos:
    """Runs a world. Per second: `rate` calls of all clients together, and `accidents`."""

    def __init__(
        self,
        seed: int,
        rate: float = 400.0,
        accidents: float = 1.0,
        world: type[World] = World,
    ) -> None:
        self.world = world(seed, LIMITS, start=3e7)  # a year of uptime: clocks are coarse there
        self.random = self.world.random
        self.rate = rate
        self.accidents = accidents
        self.quiet = False
        self.world.judge = self.judge
        self.clients: list[Client] = []
        self.servers: list[Server] = [Server(self.world, plan) for plan in PLANS]
        self.manager = Manager(
            self.world, Plan("sim.Model"), Plan("sim.Model", credits=4, time_s=0.03, most_s=0.3)
        )
        self.manager.gone = lambda: self._attach(self.manager)  # type: ignore[method-assign]
        self.servers.append(self.manager)
        for server in self.servers:
            server.attach()
        for i, tenant in enumerate(("ann", "bob", "cyd!", "dan", "eve", "")):
            client = Client(self.world, f"client{i}", tenant)
            client.attach()
            self.clients.append(client)
            self.world.at(0.0, self._ask, client)
        self.world.at(1.0, self._accident)
        self.world.at(5.0, self._tide)

    def judge(self) -> None:
        """Check all invariants, and what can be said about hung servers."""
        world = self.world
        check(world.core, world.now)
        for server in self.servers:
            state = world.core.ports.get(server.port)
            if state is None or not server.plan.stall_ms:
                continue
            stall = server.plan.stall_ms / 1000
            export = state.exports.get(server.plan.service)
            if server.hung_at is None:
                recent = world.now - server.resumed_at < 2 * stall
                expect("a busy port is not called hung", recent or not state.stalled, server.name)
            elif export is not None and export.running:
                began = max(server.hung_at, state.last_progress)
                found = state.stalled or world.now - began <= 1.3 * stall
                expect("a hung port is found within its stall time", found, server.name)

    # Clients.

    def _ask(self, client: Client) -> None:
        if self.quiet:
            return
        pick = self.world.pick
        rate = self.rate / len(self.clients)
        self.world.at(self.random.expovariate(rate), self._ask, client)
        if not client.alive:
            return
        draw = self.random.random
        service, keys = pick(TARGETS)
        key = pick(keys)
        method = "Idem"
        if service in EVERYTHING:
            method = pick(METHODS)
        if draw() < 0.001:
            service = "sim.Nobody"
        call = client.ask(
            service,
            method,
            key,
            call_class=pick((0, 0, 0, 1, 2, 3, 4, 4, 4, 9)),
            timeout_s=pick((0, 0, 0.05, 0.3, 1.0, 10.0)),
            pieces=self.random.randint(1, 5),
            affinity=pick(("", "", "p1", "p2")),
        )
        if draw() < 0.04:
            self.world.at(self.random.expovariate(10), client.cancel, call, client.port)

    def _tide(self) -> None:
        """Load comes and goes."""
        if not self.quiet:
            self.rate *= self.world.pick((0.5, 2.0)) if 100 <= self.rate <= 1600 else 1.0
            self.rate = min(1000.0, max(150.0, self.rate))
            self.world.at(5.0, self._tide)

    # Accidents.

    def _accident(self) -> None:
        if self.quiet:
            return
        self.world.at(self.random.expovariate(self.accidents), self._accident)
        server = self.world.pick(self.servers)
        workers = [w for w in self.manager.workers if w.alive]
        if workers and self.random.random() < 0.4:
            server = self.world.pick(workers)
        if not server.alive:
            return
        kind = self.world.pick(ACCIDENTS)
        self.world.outcomes[kind] += 1
        if kind == "crash":
            server.die()
            self._back(server, self.world.pick((0.01, 0.5, 2.0, 7.0)))
        elif kind == "reattach":
            server.attach()  # before its old stream was seen to end
        elif kind == "drain":
            server.drain()
            self._back_when_gone(server)
        elif kind == "operator drains":
            self.world.feed(DrainRequested(server.port))
            self.world.at(1.0, self._crash_if, server, server.port)
        elif kind == "hang":
            server.hang(self.world.pick((0.2, 1.5, 4.0)))
        elif kind == "credits":
            server.set_credits(self.world.pick((1, 2, 3, 8, server.plan.credits)))
        elif kind == "client dies":
            client = self.world.pick(self.clients)
            client.die()
            self.world.at(0.1, self._new_client, client)
        elif kind == "operator cancels" and self.world.core.calls.table:
            self.world.feed(CancelRequested(self.world.pick([*self.world.core.calls.table])))

    def _crash_if(self, server: Server, port: int) -> None:
        if server.alive and server.port == port:
            server.die()
            self._back(server, 0.1)

    def _new_client(self, client: Client) -> None:
        if not client.alive:
            client.instance = f"{client.name}-{self.world.uid():08}"
            client.attach()

    def _back(self, server: Server, delay: float) -> None:
        if server in self.servers:  # workers come back by faults
            self.world.at(delay, self._attach, server)

    def _attach(self, server: Server) -> None:
        if not server.alive:
            server.instance = f"{server.name}-{self.world.uid():08}"
            server.credits = server.most_credits = server.plan.credits
            server.attach()

    def _back_when_gone(self, server: Server) -> None:
        if server.alive and server.draining:
            self.world.at(0.2, self._back_when_gone, server)
        else:
            self._back(server, 0.0)

    # The end.

    def finish(self) -> None:
        """No new calls, no accidents, all servers back: everything must end."""
        world = self.world
        self.quiet = True
        world.run(seconds=10.0)
        for server in self.servers:
            if not server.alive:
                self._attach(server)
        world.run(seconds=60.0)
        hopeless = [c for c in self.clients if c.asked]
        expect("every call is answered", not hopeless, [len(c.asked) for c in hopeless])
        check(world.core, world.now)
        check_empty(world.core)
        for client in self.clients:
            client.die()
        for server in [*self.servers, *self.manager.workers]:
            server.die()
        expect("no port is left", not world.core.ports, world.core.ports)
        world.judge = None
        world.run(seconds=10.0)
        check(world.core, world.now)
        self.manager.workers.clear()


ACCIDENTS = (
    *("crash",) * 4,
    *("reattach",) * 2,
    *("drain",) * 2,
    *("hang",) * 2,
    "operator drains",
    "credits",
    "client dies",
    *("operator cancels",) * 3,
)
