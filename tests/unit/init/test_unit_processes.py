"""Units over real tiny processes and a real clock; readiness is a file instead of a socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmos.lib.errors import FailedPrecondition, NotFound, Unavailable
from llmos.lib.host import records
from llmos.servers.init.journal import Journal
from llmos.servers.init.life import Policy, State
from llmos.servers.init.manifest import Manifest, ProcessSpec
from llmos.servers.init.spawner import Exit, LocalSpawner
from llmos.servers.init.supervisor import Step, Supervisor
from llmos.servers.init.unit import Health, Unit, World

POLICY = Policy(base_s=0.1, cap_s=0.4, healthy_s=30, hang_s=0.6, attempts=3)
# Ready as soon as it has written its pid; SIGTERM ends it.
STAYS = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
DIES = "import os, sys; print('no room for me', file=sys.stderr); sys.exit(5)"
DIES_LATE = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(.15)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + STAYS
NEVER_READY = "import time; time.sleep(60)"


class FileProbe:
    """Serving = the pid in the file `address` runs and is not stopped."""

    async def check(self, address: str, timeout_s: float) -> Health:
        try:
            pid = int(Path(address).read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, ValueError):
            return Health.SILENT
        return Health.SILENT if state in "TZ" else Health.SERVING


def spec(name: str, code: str, *after: str, start_s: float = 10, stop_s: float = 5) -> ProcessSpec:
    words = (sys.executable, "-S", "-c", code, "{ready}")
    return ProcessSpec(name, words, after, start_s, stop_s)


class Bench:
    """A folder, a world and what must be stopped at the end."""

    def __init__(self, folder: Path) -> None:
        self.run_dir, self.logs = folder / "run", folder / "logs"
        self.run_dir.mkdir(exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        self.units: list[Unit] = []
        self.told: list[tuple[str, dict[str, object]]] = []

    def world(self) -> World:
        def ready(name: str) -> str:
            return str(self.run_dir / f"{name}.ready")

        return World(
            policy=POLICY,
            spawner=LocalSpawner({"LLMOS_RUN_DIR": str(self.run_dir)}),
            probe=FileProbe(),
            journal=Journal(self.run_dir / "init.json"),
            run_dir=self.run_dir,
            logs=self.logs,
            log_cap=1 << 20,
            address=ready,
            argv=lambda s: [w.replace("{ready}", ready(s.name)) for w in s.command],
            tell=lambda topic, **facts: self.told.append((topic, dict(facts))),
        )

    def unit(self, spec: ProcessSpec, policy: Policy = POLICY) -> Unit:
        unit = Unit(spec, replace(self.world(), policy=policy))
        self.units.append(unit)
        return unit

    def supervisor(self, *specs: ProcessSpec) -> Supervisor:
        supervisor = Supervisor(Manifest(Path("x"), specs), self.world())
        self.units.extend(supervisor.units.values())
        return supervisor


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        await asyncio.gather(*(unit.stop() for unit in bench.units))
        for record in records(bench.run_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGKILL)


async def until(what: Callable[[], bool], limit_s: float = 10) -> None:
    async with asyncio.timeout(limit_s):
        while not what():
            await asyncio.sleep(0.01)


def pid(unit: Unit) -> int:
    assert unit.handle is not None
    return unit.handle.pid


async def test_killed_is_back_at_once_and_counted(bench: Bench) -> None:
    unit = bench.unit(spec("a", STAYS), replace(POLICY, base_s=600, cap_s=600))  # no pause at all
    unit.start()
    await unit.ready.wait()
    first = pid(unit)
    os.kill(first, signal.SIGKILL)
    await until(lambda: unit.handle is not None and pid(unit) != first and unit.ready.is_set(), 30)
    assert (unit.life.state, unit.life.restarts) == (State.RUNNING, 1)
    assert unit.life.last_exit == "killed by SIGKILL"
    assert "killed by SIGKILL" in (bench.logs / "a.crash.log").read_text()
    assert [r.pid for r in records(bench.run_dir)] == [pid(unit)]
    assert Journal(bench.run_dir / "init.json").get("a") == (1, "killed by SIGKILL")


async def test_back_off_grows_to_its_cap(bench: Bench) -> None:
    unit = bench.unit(spec("a", DIES_LATE))
    unit.start()
    begin = time.monotonic()
    await until(lambda: unit.life.restarts >= 5, 20)
    # Four pauses lie between: 0, 0.1, 0.2, 0.4 s; and each life lasted 0.15 s.
    assert time.monotonic() - begin > 0.7 + 5 * 0.15
    assert unit.failure is None  # it was ready once, so it is never given up


async def test_never_ready_is_given_up_with_its_own_words(bench: Bench) -> None:
    unit = bench.unit(spec("a", DIES))
    unit.start()
    await asyncio.wait_for(unit.settled.wait(), 10)
    assert isinstance(unit.failure, FailedPrecondition)
    assert unit.failure.reason == "START_FAILED"
    assert "a does not start: no room for me (log: " in unit.failure.message
    assert unit.life.state is State.STOPPED and unit.life.last_exit == "exit code 5"


async def test_a_command_that_is_not_there_fails_at_once(bench: Bench) -> None:
    unit = bench.unit(ProcessSpec("a", ("/no/such/program",)))
    unit.start()
    await asyncio.wait_for(unit.settled.wait(), 10)
    assert unit.failure is not None and "/no/such/program" in unit.failure.message
    assert unit.life.restarts == 0


async def test_late_start_is_killed(bench: Bench) -> None:
    unit = bench.unit(spec("a", NEVER_READY, start_s=0.3))
    unit.start()
    await asyncio.wait_for(unit.settled.wait(), 10)
    assert unit.life.last_exit == "killed by SIGKILL (not ready within 0.3 s)"


async def test_hung_is_killed_and_back(bench: Bench) -> None:
    unit = bench.unit(spec("a", STAYS))
    unit.start()
    await unit.ready.wait()
    first = pid(unit)
    os.kill(first, signal.SIGSTOP)
    await until(lambda: unit.life.restarts == 1 and unit.ready.is_set())
    assert unit.life.last_exit == "killed by SIGKILL (hung: no answer for 0.6 s)"


async def test_hung_by_the_kernels_word_is_killed_with_the_reason(bench: Bench) -> None:
    supervisor = bench.supervisor(spec("a", STAYS), spec("b", STAYS))
    await supervisor.boot()
    unit, other = supervisor.units["a"], supervisor.units["b"]
    first, second = pid(unit), pid(other)
    supervisor.hung("a", first, "hung: no progress")
    supervisor.hung("a", first, "hung: said twice")
    supervisor.hung("worker/m@1", 1, "hung: not ours")
    await until(lambda: unit.life.restarts == 1 and unit.ready.is_set())
    assert unit.life.last_exit == "killed by SIGKILL (hung: no progress)"
    assert "(hung: no progress)" in (bench.logs / "a.crash.log").read_text()
    assert pid(other) == second
    hung = [facts for topic, facts in bench.told if topic == "process.hung"]
    assert hung[0] == {"name": "a", "pid": first, "managed": True}
    assert hung[2] == {"name": "worker/m@1", "pid": 1, "managed": False}
    died, restarted = bench.told[-2:]
    how = "killed by SIGKILL (hung: no progress)"
    assert died == (
        "process.died",
        {"name": "a", "pid": first, "how": how, "given_up": False},
    )
    assert restarted == ("process.restarted", {"name": "a", "pid": pid(unit), "restarts": 1})


async def test_stop_kills_what_ignores_sigterm(bench: Bench) -> None:
    unit = bench.unit(spec("a", STUBBORN, stop_s=0.3))
    unit.start()
    await unit.ready.wait()
    await unit.stop()
    assert unit.life.state is State.STOPPED and unit.life.last_exit == "killed by SIGKILL"
    assert not list(records(bench.run_dir))


async def test_adopted_process_is_watched_like_a_child(bench: Bench) -> None:
    first = bench.unit(spec("a", STAYS))
    first.start()
    await first.ready.wait()
    (record,) = records(bench.run_dir)
    handle = LocalSpawner({}).adopt(record)
    assert handle is not None
    os.kill(record.pid, signal.SIGKILL)
    assert await asyncio.wait_for(handle.wait(), 5) == Exit(None)
    handle.signal(signal.SIGTERM)  # does nothing any more


async def test_a_pid_that_somebody_else_has_now_is_not_adopted(bench: Bench) -> None:
    unit = bench.unit(spec("a", STAYS))
    unit.start()
    await unit.ready.wait()
    (record,) = records(bench.run_dir)
    stale = type(record)("a", record.pid, record.started - 100)
    assert LocalSpawner({}).adopt(stale) is None
    assert LocalSpawner({}).adopt(type(record)("a", 2**22 + 1, 0)) is None


async def test_boot_is_in_order_and_shutdown_in_reverse(bench: Bench) -> None:
    supervisor = bench.supervisor(spec("k", STAYS), spec("a", STAYS, "k"), spec("b", STAYS, "a"))
    await supervisor.boot()
    views = supervisor.views()
    assert [(v.name, v.state, v.managed) for v in views] == [
        (name, State.RUNNING, True) for name in "kab"
    ]
    assert all(v.rss_bytes > 0 and v.pid > 0 and v.uptime_s >= 0 for v in views)
    began = [Path(f"/proc/{v.pid}").stat().st_ctime_ns for v in views]
    assert began == sorted(began)
    steps = [step async for step in supervisor.shutdown()]
    assert steps == [Step(name, done) for name in "bak" for done in (False, True)]
    assert [step async for step in supervisor.shutdown()] == steps  # a second caller hears it all
    assert supervisor.gone.is_set() and not list(records(bench.run_dir))


async def test_failed_boot_stops_what_it_started_and_not_what_comes_after(bench: Bench) -> None:
    supervisor = bench.supervisor(spec("k", STAYS), spec("a", DIES, "k"), spec("b", STAYS, "a"))
    with pytest.raises(FailedPrecondition, match="a does not start: no room for me"):
        await supervisor.boot()
    assert not list(records(bench.run_dir))
    assert not (bench.logs / "b.log").exists()
    assert not (bench.run_dir / "init.json").exists()


async def test_shutdown_in_the_middle_of_a_boot(bench: Bench) -> None:
    supervisor = bench.supervisor(spec("k", STAYS), spec("a", NEVER_READY, "k"))
    boot = asyncio.create_task(supervisor.boot())
    await until(lambda: supervisor.units["a"].handle is not None)
    async for _ in supervisor.shutdown():
        pass
    await asyncio.wait_for(boot, 5)
    assert not list(records(bench.run_dir))


async def test_restart_and_its_errors(bench: Bench) -> None:
    supervisor = bench.supervisor(spec("k", STAYS))
    await supervisor.boot()
    before = supervisor.views()[0].pid
    view = await supervisor.restart("k")
    assert view.pid != before and view.restarts == 1 and view.state is State.RUNNING
    with pytest.raises(NotFound, match="no process 'z'; it has k"):
        await supervisor.restart("z")
    async for _ in supervisor.shutdown():
        pass
    with pytest.raises(Unavailable) as caught:
        await supervisor.restart("k")
    assert caught.value.reason == "NOT_READY"


async def test_shutdown_ends_what_others_started(bench: Bench) -> None:
    """A process with no record, started by a managed one in a session of its own, and orphaned."""
    child = "import subprocess, sys; subprocess.Popen(['sleep', '60'], start_new_session=True); "
    supervisor = bench.supervisor(spec("k", child + STAYS))
    await supervisor.boot()
    steps = [step.name async for step in supervisor.shutdown() if step.done]
    assert len(steps) == 2 and steps[0].startswith("sleep/") and steps[1] == "k"
    assert not Path(f"/proc/{steps[0].split('/')[1]}").exists() or "Z" in (
        Path(f"/proc/{steps[0].split('/')[1]}/stat").read_text()
    )
