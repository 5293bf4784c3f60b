"""Job processes that are forked: real processes of the zygote, with a folder of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from llmos.api.optimizer.v1 import process_pb2
from llmos.lib.config import run_dir
from llmos.lib.host import ProcessRecord
from llmos.servers.optimizer.environment import environment
from llmos.servers.optimizer.folder import Folder
from llmos.servers.optimizer.launcher import Launcher
from llmos.servers.optimizer.nursery import Nursery, Process


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[Launcher]:
    nursery = Nursery()
    yield Launcher(tmp_path, (sys.executable, "-c", "raise SystemExit(9)"), nursery)
    nursery.close()
    await until(lambda: not zygotes())


def folder(tmp_path: Path, name: str) -> Folder:
    """Make a folder whose job ends at once, in an error: it has no kind."""
    found = Folder(tmp_path / name)
    found.create(process_pb2.JobRecord())
    found.write_launch(
        process_pb2.JobLaunch(id=name, attempt=1, state_dir=str(tmp_path), kernel="none")
    )
    return found


async def until(said: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not said():
            await asyncio.sleep(0.02)


def zygotes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and "zygote" in " ".join(process.cmdline()):
                found.append(process)
    return found


async def ended(process: Process) -> str:
    await until(lambda: not process.alive())
    return process.ending()


async def test_a_forked_job_reports_logs_and_frees_its_lock(
    launcher: Launcher, tmp_path: Path
) -> None:
    for name in ("one", "two"):  # the second one by the same zygote
        job = folder(tmp_path, name)
        process = launcher.start(name, job)
        assert job.locked() and process.alive()
        assert await ended(process) == "with exit status 0"
        assert process.pid() > 0 and not job.locked()
        assert "failed" in job.log.read_text() and job.progress(1).stat().st_size > 0
    assert len(zygotes()) == 1


async def test_a_killed_job_and_a_killed_zygote_are_told_apart(
    launcher: Launcher, tmp_path: Path
) -> None:
    job = folder(tmp_path, "job")
    launch = job.path / "launch.pb"
    text = launch.read_bytes()
    launch.unlink()
    os.mkfifo(launch)  # the job waits there for a writer
    process = launcher.start("job", job, ["llmos.no.such.module"])  # the job itself would say it
    process.signal(signal.SIGKILL)  # before it is there: it is remembered
    assert await ended(process) == "by SIGKILL"
    orphan = launcher.start("job", job)
    await until(lambda: orphan.pid() > 0)
    (zygote,) = zygotes()
    os.kill(zygote.pid, signal.SIGKILL)
    await until(lambda: not zygotes())
    assert orphan.alive()
    orphan.signal(signal.SIGKILL)
    assert await ended(orphan) == "with the process that had started it"
    launch.unlink()
    launch.write_bytes(text)
    assert await ended(launcher.start("job", job)) == "with exit status 0"  # by a new zygote


async def test_a_signal_reaches_a_job_that_was_forked_this_moment(tmp_path: Path) -> None:
    slow = (
        "import os, time\n"
        "session = os.setsid\n"
        "os.setsid = lambda: (time.sleep(0.5), session())\n"
        "from llmos.servers.optimizer import zygote\n"
        "zygote.main()\n"
    )
    nursery = Nursery([sys.executable, "-c", slow])
    launcher = Launcher(tmp_path, (sys.executable, "-c", "raise SystemExit(9)"), nursery)
    job = folder(tmp_path, "job")
    (job.path / "launch.pb").unlink()
    os.mkfifo(job.path / "launch.pb")  # the job waits there for a writer
    process = launcher.start("job", job)
    process.signal(signal.SIGKILL)
    assert await ended(process) == "by SIGKILL"
    nursery.close()


async def test_a_zygote_killed_before_it_told_of_a_job_loses_no_signal(tmp_path: Path) -> None:
    dying = (
        "import os, signal\n"
        "os.pidfd_open = lambda pid: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from llmos.servers.optimizer import zygote\n"
        "zygote.main()\n"
    )
    nursery = Nursery([sys.executable, "-c", dying])
    launcher = Launcher(run_dir(tmp_path), (sys.executable, "-c", ""), nursery)
    job = folder(tmp_path, "job")
    os.mkfifo(job.progress(1))  # the job has its record, and waits for a reader
    process = launcher.start("job", job)
    process.signal(signal.SIGKILL)
    assert await ended(process) == "with the process that had started it"
    nursery.close()


async def test_a_signal_for_a_job_without_a_record_is_kept(tmp_path: Path) -> None:
    job = folder(tmp_path, "job")
    lock = job.lock()
    adopted = Launcher(tmp_path).find("job", job)
    assert adopted is not None
    adopted.signal(signal.SIGKILL)
    child = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    assert adopted.pid() == 0
    ProcessRecord.of(child.pid, "job/job").write(tmp_path)
    assert adopted.pid() == child.pid
    assert await child.wait() == -signal.SIGKILL
    os.close(lock)


async def test_a_zygote_that_cannot_work_is_not_tried_for_ever(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "raise SystemExit(9)")
    launcher = Launcher(tmp_path, command, Nursery(["/bin/false"]))
    job = folder(tmp_path, "job")
    endings = [await ended(launcher.start("job", job)) for _ in range(2)]
    assert endings[-1] == "with exit status 9"


async def test_without_a_zygote_the_command_is_started(tmp_path: Path) -> None:
    says = "import os; print(os.environ['GOMP_SPINCOUNT']); raise SystemExit(9)"
    launcher = Launcher(tmp_path, (sys.executable, "-c", says), Nursery(["/no/such/program"]))
    job = folder(tmp_path, "job")
    assert await ended(launcher.start("job", job)) == "with exit status 9"
    assert job.log.read_text() == "1000\n"  # its threads sleep while they wait for one another


def test_what_a_person_set_for_threads_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment()["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert "GOMP_SPINCOUNT" not in environment()
