"""The whole set of processes: boot in order, list, restart, stop in reverse order."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import psutil

from llmos.lib.errors import FailedPrecondition, NotFound, Unavailable
from llmos.lib.family import members
from llmos.lib.host import ProcessRecord, records
from llmos.servers.init.life import State
from llmos.servers.init.manifest import Manifest
from llmos.servers.init.unit import Unit, World, end

_UNMANAGED_GRACE_S = 12.0
_SWEEPS = 5  # a process that is being stopped may just have started another
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """One process as listed; fields as Process of init.proto."""

    name: str
    pid: int
    state: State
    managed: bool
    restarts: int = 0
    rss_bytes: int = 0
    uptime_s: float = 0.0
    last_exit: str = ""
    log: str = ""
    address: str = ""


@dataclass(frozen=True)
class Step:
    """One step of a shutdown: a process is being stopped, or is gone."""

    name: str
    done: bool


class Supervisor:
    """Owns the units of a manifest and the order in which they start and stop."""

    def __init__(self, manifest: Manifest, world: World) -> None:
        """Prepare; nothing runs before `boot`."""
        self._world = world
        self._levels = [[spec.name for spec in level] for level in manifest.levels()]
        self._adoptable = self._running(manifest)
        if not self._adoptable:
            world.journal.clear()  # a new life: counts begin at 0
        self.units = {spec.name: Unit(spec, world) for spec in manifest.specs}
        self.stopping = asyncio.Event()  # a shutdown has begun
        self.gone = asyncio.Event()  # it has ended
        self._boot: asyncio.Task[None] | None = None
        self._shutdown: asyncio.Task[None] | None = None
        self._steps: list[Step] = []
        self._news = asyncio.Condition()

    def _running(self, manifest: Manifest) -> dict[str, ProcessRecord]:
        names = {spec.name for spec in manifest.specs}
        return {r.name: r for r in records(self._world.run_dir) if r.name in names}

    async def boot(self) -> None:
        """Adopt what runs, start what does not, each after what it depends on.

        Raises FailedPrecondition START_FAILED when a process cannot be started, after stopping
        everything that this boot started. Returns early when a shutdown comes in between.
        """
        self._boot = asyncio.create_task(self._start_all())
        try:
            await asyncio.wait([self._boot])
            if not self._boot.cancelled():
                self._boot.result()
        except FailedPrecondition:
            started = {name for name, unit in self.units.items() if not unit.adopted}
            await self._stop_units(started, sweep=len(started) == len(self.units))
            self._world.journal.clear()
            raise

    async def _start_all(self) -> None:
        starts = [asyncio.create_task(self._start(unit)) for unit in self.units.values()]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()

    async def _start(self, unit: Unit) -> None:
        record = self._adoptable.get(unit.spec.name)
        handle = self._world.spawner.adopt(record) if record is not None else None
        if handle is None:
            for other in unit.spec.after:
                await self.units[other].settled.wait()
                if self.units[other].failure is not None:
                    return  # its own start reports it
        unit.start(handle)
        await unit.settled.wait()
        if unit.failure is not None:
            raise unit.failure

    def views(self) -> list[View]:
        """Return the managed processes in order of dependency, then the others by name."""
        views = [self._view(unit) for unit in self.units.values()]
        others = [r for r in records(self._world.run_dir) if r.name not in self.units]
        for record in sorted(others, key=lambda r: r.name):
            rss, uptime = _usage(record.pid)
            views.append(
                View(
                    name=record.name,
                    pid=record.pid,
                    state=State.RUNNING,
                    managed=False,
                    rss_bytes=rss,
                    uptime_s=uptime,
                    log=record.log,
                    address=record.address,
                )
            )
        return views

    def _view(self, unit: Unit) -> View:
        pid = unit.handle.pid if unit.handle is not None else 0
        rss, uptime = _usage(pid)
        return View(
            name=unit.spec.name,
            pid=pid,
            state=unit.life.state,
            managed=True,
            restarts=unit.life.restarts,
            rss_bytes=rss,
            uptime_s=uptime,
            last_exit=unit.life.last_exit,
            log=str(unit.log),
            address=unit.address,
        )

    async def restart(self, name: str) -> View:
        """Restart a managed process gracefully; return it when the new one is ready.

        Raises NotFound NO_SUCH_PROCESS, Unavailable NOT_READY.
        """
        unit = self.units.get(name)
        if unit is None:
            raise NotFound(
                "NO_SUCH_PROCESS",
                f"The manifest has no process {name!r}; it has {', '.join(self.units)}.",
            )
        await unit.settled.wait()
        if self._shutdown is not None or not await unit.restart():
            raise Unavailable(
                "NOT_READY", f"{name} was not ready again in its start time; see {unit.log}."
            )
        return self._view(unit)

    def hung(self, name: str, pid: int, why: str) -> None:
        """Take the kernel's word that a process hangs: kill and restart it if it is managed.

        Of a process that another server has started, that server takes care; here it is told.
        """
        managed = any(unit.hung(pid, why) for unit in self.units.values())
        log.error("a process hangs", extra={"unit": name, "child_pid": pid, "managed": managed})
        self._world.tell("process.hung", name=name, pid=pid, managed=managed)

    async def shutdown(self) -> AsyncIterator[Step]:
        """Stop everything in reverse order; yield each step, also those of an earlier caller."""
        if self._shutdown is None:
            if self._boot is not None:
                self._boot.cancel()
            self.stopping.set()
            self._shutdown = asyncio.create_task(self._stop_all())
        seen = 0
        while not self.gone.is_set() or seen < len(self._steps):
            while seen < len(self._steps):
                seen += 1
                yield self._steps[seen - 1]
            async with self._news:
                while not self.gone.is_set() and seen == len(self._steps):
                    await self._news.wait()

    async def _stop_all(self) -> None:
        try:
            await self._stop_units(set(self.units), sweep=True)
            self._world.journal.clear()
        finally:
            self.gone.set()
            async with self._news:
                self._news.notify_all()

    async def _stop_units(self, names: set[str], *, sweep: bool) -> None:
        for level in reversed(self._levels):
            if sweep and level is self._levels[0]:
                await self._sweep()  # while the kernel is there, so that workers can drain
            await asyncio.gather(*(self._stop(self.units[n]) for n in level if n in names))
        if sweep:
            await self._sweep()

    async def _stop(self, unit: Unit) -> None:
        await self._say(Step(unit.spec.name, done=False))
        await unit.stop()
        await self._say(Step(unit.spec.name, done=True))

    async def _sweep(self) -> None:
        """Stop the processes that other servers started, and those which these start meanwhile."""
        for _ in range(_SWEEPS):
            others = [
                r for r in members(self._world.run_dir) if r.pid not in (os.getpid(), *self._pids())
            ]
            if not others:
                return
            await asyncio.gather(*map(self._stop_other, others))

    def _pids(self) -> set[int]:
        return {u.handle.pid for u in self.units.values() if u.handle is not None}

    async def _stop_other(self, record: ProcessRecord) -> None:
        handle = self._world.spawner.adopt(record)
        if handle is not None:
            await self._say(Step(record.name, done=False))
            await end(handle, _UNMANAGED_GRACE_S)
            await self._say(Step(record.name, done=True))
        record.remove(self._world.run_dir)

    async def _say(self, step: Step) -> None:
        log.info("stopped" if step.done else "stopping", extra={"unit": step.name})
        async with self._news:
            self._steps.append(step)
            self._news.notify_all()


def _usage(pid: int) -> tuple[int, float]:
    """Return (resident bytes, seconds since its start) of a process, zeros when it is gone."""
    try:
        process = psutil.Process(pid)
        return process.memory_info().rss, max(0.0, time.time() - process.create_time())
    except psutil.Error:
        return 0, 0.0
