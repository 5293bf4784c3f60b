"""One managed process: drives its `Life` with a real process, a real clock and health checks."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from llmos.lib.errors import FailedPrecondition
from llmos.lib.host import ProcessRecord
from llmos.lib.publish import Tell, nobody
from llmos.servers.init import logs
from llmos.servers.init.journal import Journal
from llmos.servers.init.life import Life, Policy, State
from llmos.servers.init.manifest import ProcessSpec
from llmos.servers.init.spawner import Exit, Handle, Spawner

_POLL_S = 0.05  # between two questions whether a starting process is ready
_USAGE = 2  # exit code of a process that does not like its configuration: trying again is no use
log = logging.getLogger(__name__)


class Health(enum.Enum):
    """What a process says of itself."""

    SERVING = 1
    NOT_SERVING = 2
    SILENT = 3


class Probe(Protocol):
    """Asks processes for their health."""

    async def check(self, address: str, timeout_s: float) -> Health:
        """Return what the process at `address` says of itself within `timeout_s`."""


@dataclass(frozen=True)
class World:
    """What all units share."""

    policy: Policy
    spawner: Spawner
    probe: Probe
    journal: Journal
    run_dir: Path
    logs: Path
    log_cap: int
    address: Callable[[str], str]
    argv: Callable[[ProcessSpec], list[str]]
    tell: Tell = nobody  # events: process.died, process.restarted, process.hung


class Unit:
    """Keeps one process of the manifest running from `start` to `stop`."""

    def __init__(self, spec: ProcessSpec, world: World) -> None:
        """Prepare; nothing runs before `start`. Counters go on from the journal."""
        restarts, last_exit = world.journal.get(spec.name)
        self.spec = spec
        self.life = Life(world.policy, restarts=restarts, last_exit=last_exit)
        self.address = world.address(spec.name)
        self.log = world.logs / logs.file_name(spec.name)
        self.handle: Handle | None = None
        self.adopted = False
        self.ready = asyncio.Event()  # set while it runs and has said SERVING
        self.failure: FailedPrecondition | None = None  # why it was given up
        self.settled = asyncio.Event()  # it was ready once, or it was given up
        self._world = world
        self._task: asyncio.Task[None] | None = None
        self._why = ""  # why we killed it ourselves
        self._pid = 0  # of the latest process
        self._spawned = False  # ... which is ours, not adopted
        self._log_start = 0
        self._changing = asyncio.Lock()  # one stop or restart at a time

    def start(self, adopt: Handle | None = None) -> None:
        """Begin to keep it running; with `adopt`, an already running process goes on."""
        self.adopted = adopt is not None
        self._task = asyncio.create_task(self._run(adopt), name=f"unit-{self.spec.name}")

    async def stop(self) -> None:
        """End it for good: SIGTERM, and SIGKILL when it has not drained in its stop time."""
        async with self._changing:
            await self._stop()

    async def _stop(self) -> None:
        self.life.stopping()
        self.ready.clear()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        how = ""
        if self.handle is not None:
            how = str(await end(self.handle, self.spec.stop_timeout_s))
            self._forget(self.handle)
        self.life.stopped(how)

    async def restart(self) -> bool:
        """Stop it, start it again and return whether it became ready in its start time."""
        async with self._changing:
            if self.life.state is State.STOPPED:
                return False
            await self._stop()
            self.life.again()
            self._keep()
            self.start()
        try:
            await asyncio.wait_for(self.ready.wait(), self.spec.start_timeout_s)
        except TimeoutError:
            return False
        return True

    def hung(self, pid: int, why: str) -> bool:
        """Kill the process, unless it ends already; return whether `pid` is this unit's."""
        if self.handle is None or self.handle.pid != pid:
            return False
        if self.life.state is not State.STOPPING and not self._why:
            self._kill(self.handle, why)
        return True

    async def _run(self, adopt: Handle | None) -> None:
        handle, self._why = adopt, ""
        while True:
            how, hopeless = await self._one_life(handle)
            handle = None
            pause = self.life.died(time.monotonic(), how, hopeless=hopeless)
            self._keep()
            log.warning("process died", extra={"unit": self.spec.name, "how": how, "wait": pause})
            self._world.tell(
                "process.died",
                name=self.spec.name,
                pid=self._pid,
                how=how,
                given_up=pause is None,
            )
            if pause is None:
                self.failure = self._given_up(how)
                self.settled.set()
                return
            await asyncio.sleep(pause)

    async def _one_life(self, handle: Handle | None) -> tuple[str, bool]:
        """Run one process to its end; return how it ended and whether another try is hopeless."""
        self._spawned, self._pid = handle is None, 0
        try:
            handle = handle or self._spawn()
        except OSError as exc:
            return f"it cannot be started: {exc}", isinstance(exc, FileNotFoundError)
        self.handle, self._why, self._pid = handle, "", handle.pid
        self.life.started()
        watch = asyncio.create_task(self._watch(handle))
        try:
            ended = await handle.wait()
        finally:
            watch.cancel()
            self.ready.clear()
        how = f"{ended} ({self._why})" if self._why else str(ended)
        self._forget(handle)
        if ended.code != 0:
            try:
                logs.note_crash(self.log, handle.pid, how, self._log_start)
            except OSError as exc:  # e.g. a full disk: what matters is that it runs again
                log.warning("cannot write the crash log: %s", exc)
        return how, ended.code == _USAGE

    def _spawn(self) -> Handle:
        logs.rotate(self.log, self._world.log_cap)
        self._log_start = logs.size(self.log)
        handle = self._world.spawner.spawn(self._world.argv(self.spec), self.log)
        try:
            # The process writes its own record when it serves; this one is for an init that dies
            # before that, whose successor must not start a second process.
            record = ProcessRecord.of(handle.pid, self.spec.name, self.address, str(self.log))
            record.write(self._world.run_dir)
        except psutil.NoSuchProcess:
            pass  # it has ended already, as `wait` will say
        except OSError as exc:
            log.warning("cannot write a process record: %s", exc)
        log.info("started", extra={"unit": self.spec.name, "child_pid": handle.pid})
        return handle

    async def _watch(self, handle: Handle) -> None:
        """Say when the process is ready, and kill it when it is late or hangs."""
        deadline = time.monotonic() + self.spec.start_timeout_s
        while await self._check() is not Health.SERVING:
            if time.monotonic() > deadline:
                self._kill(handle, f"not ready within {self.spec.start_timeout_s:g} s")
                return
            await asyncio.sleep(_POLL_S)
        self.life.ready(time.monotonic())
        if self._spawned and self.life.restarts:
            self._world.tell(
                "process.restarted",
                name=self.spec.name,
                pid=handle.pid,
                restarts=self.life.restarts,
            )
        self.ready.set()
        self.settled.set()
        while True:
            await asyncio.sleep(self._world.policy.check_s)
            if await self._check() is not Health.SILENT:
                self.life.answered()
            elif self.life.missed():
                self._kill(handle, f"hung: no answer for {self._world.policy.hang_s:g} s")
                return

    async def _check(self) -> Health:
        return await self._world.probe.check(self.address, self._world.policy.check_s)

    def _kill(self, handle: Handle, why: str) -> None:
        self._why = why
        handle.signal(signal.SIGKILL)

    def _forget(self, handle: Handle) -> None:
        ProcessRecord(self.spec.name, handle.pid, 0).remove(self._world.run_dir)
        self.handle = None

    def _keep(self) -> None:
        self._world.journal.put(self.spec.name, self.life.restarts, self.life.last_exit)

    def _given_up(self, how: str) -> FailedPrecondition:
        lines, _ = logs.tail(self.log, logs.CRASH_LINES, self._log_start)
        said = logs.last_words(lines).removeprefix(f"llmos-{self.spec.name}: ") or how
        return FailedPrecondition(
            "START_FAILED", f"{self.spec.name} does not start: {said} (log: {self.log})"
        )


async def end(handle: Handle, grace_s: float) -> Exit:
    """End a process: SIGTERM, and SIGKILL after `grace_s` seconds; return how it ended."""
    handle.signal(signal.SIGTERM)
    try:
        return await asyncio.wait_for(handle.wait(), grace_s)
    except TimeoutError:
        handle.signal(signal.SIGKILL)
        return await handle.wait()
