"""Servers of the simulated world: they work, call others, hang, die, drain and come back."""

from __future__ import annotations

from dataclasses import dataclass

from kernel_invariants import expect, judge_dispatch
from kernel_world import FILES, UID, Process, World

from llmos.api.kernel.v1 import admin_pb2
from llmos.api.kernel.v1 import port_pb2 as pb

END = pb.KIND_END
STOP_S = 0.05  # how long a server takes at most to stop cancelled work: the grace after a deadline


Birth = tuple[str, float | None]  # a parent's tenant and deadline


def judge_birth(birth: Birth, task: Task) -> None:
    """Judge what a nested call inherited."""
    tenant, deadline = birth
    expect("a child has its parent's tenant", task.tenant == tenant, task.uid)
    if deadline is not None:
        on_time = task.deadline is not None and task.deadline <= deadline + 3e-6
        expect("a child ends with its parent's deadline", on_time, task.uid)


@dataclass(frozen=True)
class Plan:
    """What a server does; times in seconds."""

    service: str
    keys: tuple[str, ...] = ("",)
    credits: int = 0
    stall_ms: int = 0
    time_s: float = 0.02  # mean
    most_s: float = 0.2
    calls: str = ""  # service that it calls while it handles a call
    costs: bool = False  # report a cost


class Task:
    """One call that a server works on."""

    __slots__ = (
        "call_class",
        "cancelled",
        "child",
        "cost",
        "deadline",
        "got",
        "id",
        "method",
        "parts",
        "tenant",
        "uid",
    )

    def __init__(self, envelope: pb.Envelope, now: float) -> None:
        opened = envelope.open
        self.id = envelope.call
        self.method = opened.method.rpartition("/")[2]
        self.uid, self.parts = UID.unpack(envelope.payload)
        self.deadline = now + opened.timeout_us / 1e6 if opened.timeout_us else None
        self.tenant = opened.tenant
        self.call_class = int(opened.call_class)
        self.got = 0  # messages of the request after the first; or pieces sent
        self.child = 0
        self.cost = 0.0
        self.cancelled = False


class Server(Process):
    """One simulated server process."""

    asks: tuple[pb.CallClass.ValueType, ...] = (
        pb.CALL_CLASS_UNSPECIFIED,
        pb.CALL_CLASS_SYSTEM,
        pb.CALL_CLASS_BATCH,
    )  # classes that its nested calls ask for

    def __init__(self, world: World, plan: Plan, name: str = "") -> None:
        super().__init__(world, name or plan.service)
        self.plan = plan
        self.credits = plan.credits
        self.most_credits = plan.credits  # largest since nothing ran: what was sent may cross
        self.tasks: dict[int, Task] = {}
        self.nested: dict[int, Task] = {}  # own calls, by id
        self.hung_at: float | None = None
        self.resumed_at = 0.0
        self.draining = False
        self.drained = False
        self._held: list[tuple[pb.Envelope, float]] = []  # what a hung process has not read
        self._late: list[tuple[Task, int]] = []  # work whose time came while it hung
        self._next = 1

    def attach(self) -> None:
        self.tasks.clear()
        self.nested.clear()
        self._held, self._late, self._next = [], [], 1
        self.draining = self.drained = False
        self.hung_at = None
        super().attach()
        self.export(self.plan.keys)

    def export(self, keys: tuple[str, ...], fault_handler: bool = False) -> None:
        plan = self.plan
        export = pb.Export(
            service=plan.service,
            keys=keys,
            credits=self.credits,
            stall_ms=plan.stall_ms,
            fault_handler=fault_handler,
            files=FILES,
        )
        self.send(pb.Envelope(call=1, kind=pb.KIND_EXPORT, export=export))

    def set_credits(self, credits: int) -> None:
        """Declare other credits."""
        self.credits = credits
        self.most_credits = max(self.most_credits, credits) if credits else 0
        changed = pb.Credit(service=self.plan.service, credits=credits)
        self.send(pb.Envelope(kind=pb.KIND_CREDIT, credit=changed))

    def drain(self) -> None:
        """Ask for no new calls; end when the last is done."""
        if self.alive and not self.draining:
            self.draining = True
            self.send(pb.Envelope(kind=pb.KIND_DRAIN))

    # Hanging.

    def hang(self, seconds: float) -> None:
        """Stop reading and working, as with SIGSTOP."""
        if self.alive and self.hung_at is None:
            self.hung_at = self.world.now
            self.world.at(seconds, self._resume, self.port)

    def _resume(self, port: int) -> None:
        if not self.alive or port != self.port:
            return
        self.hung_at, self.resumed_at = None, self.world.now
        held, self._held = self._held, []
        for envelope, when in held:
            self._read(envelope, when)
        late, self._late = self._late, []
        for task, step in late:
            self._work(task, step, port)

    # Envelopes.

    def take(self, envelope: pb.Envelope) -> None:
        if envelope.kind == pb.KIND_OPEN:
            self._given(envelope)
        if self.hung_at is not None:
            # As it is: what was written to a port must not change any more.
            self._held.append((envelope, self.world.now))
        else:
            self._read(envelope, self.world.now)

    def _read(self, envelope: pb.Envelope, sent_at: float) -> None:
        kind = envelope.kind
        if kind == pb.KIND_OPEN:
            self._opened(envelope, sent_at)
        elif envelope.call & 1:
            if kind == END and (parent := self.nested.pop(envelope.call, None)) is not None:
                parent.child = 0
                self._child_ended(parent, envelope)
        elif kind == pb.KIND_CANCEL:
            task = self.tasks.get(envelope.call)
            if task is not None and not task.cancelled:
                task.cancelled = True
                self.world.at(self.world.random.random() * STOP_S, self._stop, task, self.port)
        elif kind == pb.KIND_DATA:
            self._more(envelope)
        elif kind == pb.KIND_DRAIN:
            self.drained = True
            self._maybe_leave()

    def _given(self, envelope: pb.Envelope) -> None:
        """Judge that a call was given to this server, though it may not read it for a while."""
        world, opened = self.world, envelope.open
        if opened.method.endswith("/Fault"):
            return
        judge_dispatch(world, self.port, envelope.call)
        uid, _ = UID.unpack(envelope.payload)
        world.executions[uid] += 1
        tries = world.executions[uid]
        expect("at most once", tries == 1 or not opened.method.endswith("/Once"), uid)
        expect("attempts are counted", opened.attempt == tries - 1, (uid, opened.attempt, tries))
        bound = world.core.limits.max_attempts * (1 + len(envelope.cookie))  # a piece resets it
        expect("attempts are bounded", tries <= bound, tries)

    def _opened(self, envelope: pb.Envelope, sent_at: float) -> None:
        world = self.world
        opened = envelope.open
        expect("a drained port gets no call", not self.drained, self.name)
        expect("ids are never reused", envelope.call not in self.tasks, envelope.call)
        if opened.method.endswith("/Fault"):
            self.fault(envelope)
            return
        task = self.tasks[envelope.call] = Task(envelope, sent_at)
        running, allowed = len(self.tasks), max(self.credits, self.most_credits)
        expect("credits hold", not allowed or running <= allowed, (self.name, running))
        if (birth := world.births.get(task.uid)) is not None:
            judge_birth(birth, task)
        if task.method == "Collect" and not envelope.flags & pb.FLAG_HALF_CLOSE:
            return  # the work begins when the request is complete
        if task.method == "Resume":
            task.got = len(envelope.cookie)
        self._start(task)

    def _start(self, task: Task) -> None:
        world, plan = self.world, self.plan
        seconds = min(plan.most_s, world.random.expovariate(1 / plan.time_s))
        if task.method in ("Stream", "Resume"):
            seconds /= max(1, task.parts)
        world.at(seconds, self._work, task, 0, self.port)

    def _more(self, envelope: pb.Envelope) -> None:
        task = self.tasks.get(envelope.call)
        if task is None or task.cancelled:
            return
        uid, number = UID.unpack(envelope.payload)
        task.got += 1
        expect("a request has no gap", (uid, number) == (task.uid, task.got), task.uid)
        if envelope.flags & pb.FLAG_HALF_CLOSE:
            self._start(task)

    # Work.

    def _running(self, task: Task, port: int) -> bool:
        return self.alive and port == self.port and self.tasks.get(task.id) is task

    def _work(self, task: Task, step: int, port: int) -> None:
        if not self._running(task, port) or task.cancelled:
            return
        if self.hung_at is not None:
            self._late.append((task, step))
            return
        if task.method in ("Stream", "Resume"):
            self._piece(task)
        elif self.plan.calls and step == 0:
            self._call_on(task)
        else:
            self.finish(task)

    def _piece(self, task: Task) -> None:
        if task.got >= task.parts:
            self.finish(task, payload=False)
            return
        self.send(
            pb.Envelope(
                call=task.id,
                kind=pb.KIND_DATA,
                payload=UID.pack(task.uid, task.got),
                flags=pb.FLAG_MESSAGE,
                cookie=b"." if task.method == "Resume" else b"",
            )
        )
        task.got += 1
        self._start(task)

    def _call_on(self, task: Task) -> None:
        world = self.world
        task.child = self._next
        self._next += 2
        self.nested[task.child] = task
        uid = world.uid()
        world.births[uid] = (task.tenant, task.deadline)
        opened = pb.Open(
            method=f"/{self.plan.calls}/Idem",
            parent=task.id,
            call_class=world.pick(self.asks),
            timeout_us=world.pick((0, 60_000_000)),
        )
        self.send(
            pb.Envelope(
                call=task.child,
                kind=pb.KIND_OPEN,
                payload=UID.pack(uid, 1),
                flags=pb.FLAG_MESSAGE | pb.FLAG_HALF_CLOSE,
                open=opened,
            )
        )

    def _child_ended(self, task: Task, envelope: pb.Envelope) -> None:
        if task.cancelled or task.id not in self.tasks:
            return
        if envelope.status.code:
            self.finish(task, code=9)
        else:
            self.world.at(self.plan.time_s / 2, self._work, task, 1, self.port)

    def _stop(self, task: Task, port: int) -> None:
        if self._running(task, port):
            self.finish(task, code=1)

    def finish(self, task: Task, code: int = 0, payload: bool = True) -> None:
        """Send END."""
        del self.tasks[task.id]
        if not self.tasks:
            self.most_credits = self.credits
        end = pb.Envelope(call=task.id, kind=END)
        if not code:
            end.payload = UID.pack(task.uid, task.parts)
            end.flags = pb.FLAG_MESSAGE if payload else 0
        cost = float(task.parts) if self.plan.costs else task.cost
        if code or cost:
            end.status.code = code
            end.status.cost = cost
        self.send(end)
        self._maybe_leave()

    def _maybe_leave(self) -> None:
        if self.drained and not self.tasks:
            self.world.at(2 * self.latency + 1e-6, self._leave, self.port)

    def _leave(self, port: int) -> None:
        if self.alive and port == self.port and not self.tasks:
            self.die()

    def fault(self, envelope: pb.Envelope) -> None:
        """Handle a page fault; only managers get them."""
        expect("only fault handlers get faults", False, self.name)


class Manager(Server):
    """Handles the faults of one service: starts workers, fails, dies, or lies."""

    def __init__(self, world: World, plan: Plan, worker: Plan) -> None:
        super().__init__(world, plan, "manager")
        self.worker = worker
        self.workers: list[Server] = []
        self.faults: dict[int, str] = {}

    def attach(self) -> None:
        self.faults.clear()
        super().attach()

    def export(self, keys: tuple[str, ...], fault_handler: bool = True) -> None:
        super().export(keys, fault_handler)

    def fault(self, envelope: pb.Envelope) -> None:
        key = admin_pb2.FaultRequest.FromString(envelope.payload).key
        expect("a cold key is faulted once", key not in self.faults.values(), key)
        self.faults[envelope.call] = key
        world = self.world
        self.workers = [w for w in self.workers if w.alive]
        world.at(world.random.uniform(0.05, 0.5), self._load, envelope.call, key, self.port)

    def _read(self, envelope: pb.Envelope, sent_at: float) -> None:
        if envelope.kind == pb.KIND_CANCEL and self.faults.pop(envelope.call, ""):
            self._answer(envelope.call, 1)
        else:
            super()._read(envelope, sent_at)

    def _load(self, call: int, key: str, port: int) -> None:
        if port != self.port or not self.alive or self.faults.pop(call, None) is None:
            return
        world = self.world
        fate = 0.9 if key == "liar" else world.random.random()
        if key.startswith("sound") or fate < 0.8:
            worker = Server(world, self.worker_plan(key), f"worker/{key}")
            worker.attach()
            self.workers.append(worker)
            # The worker's EXPORT has arrived when the fault is answered, as a manager ensures.
            world.at(worker.latency + 1e-6, self._answer, call, 0)
        elif fate < 0.88:
            self._answer(call, 5)
        elif fate < 0.94:
            self._answer(call, 0)  # though nothing was loaded
        else:
            self.die()
            world.at(1.0, self.gone)

    def gone(self) -> None:
        """It died by itself: whoever supervises it may start it again."""

    def worker_plan(self, key: str) -> Plan:
        """Return what a worker for a key does."""
        w = self.worker
        return Plan(w.service, (key, f"{key}@1"), w.credits, w.stall_ms, w.time_s, w.most_s)

    def _answer(self, call: int, code: int) -> None:
        if self.alive:
            self.send(pb.Envelope(call=call, kind=END, status=pb.Status(code=code)))
