"""The job server's core: queue, deaths, cancelling, restarts. Jobs are real processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from job_core import core, end_jobs, ended, export, reaches, running

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.lib.errors import FailedPrecondition


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    end_jobs(tmp_path)


async def test_one_at_a_time_in_order(state: Path) -> None:
    async with running(state) as jobs:
        ids = [(await jobs.submit(export("good"), "")).id for _ in range(3)]
        assert ids == sorted(ids) and [j.id for j in jobs.list()] == ids[::-1]
        assert [j.state for j in jobs.list()].count(jobs_pb2.JOB_STATE_RUNNING) == 1
        done = [await ended(jobs, id) for id in ids]
        for job in done:
            assert job.state == jobs_pb2.JOB_STATE_SUCCEEDED
            assert (job.progress, job.attempts, job.pid, job.error) == (1.0, 1, 0, "")
            assert list(job.results) == ["half@1", "whole@2"]
            assert [c.label for c in job.comparisons] == ["onnx"]
            assert not (Path(job.log).parent / "work").exists()
        assert done[0].ended_unix_s <= done[1].ended_unix_s <= done[2].ended_unix_s


async def test_two_at_a_time(state: Path) -> None:
    async with running(state, parallel=2) as jobs:
        ids = [(await jobs.submit(export("slow"), "")).id for _ in range(3)]
        pids = {(await reaches(jobs, id, "works")).pid for id in ids[:2]}
        assert len(pids) == 2 and jobs.list()[0].state == jobs_pb2.JOB_STATE_QUEUED


async def test_an_error_is_the_jobs_error(state: Path) -> None:
    async with running(state) as jobs:
        job = await ended(jobs, (await jobs.submit(export("bad"), "")).id)
        assert (job.state, job.error) == (jobs_pb2.JOB_STATE_FAILED, "It is bad; do better.")
        assert job.attempts == 1 and job.ended_unix_s > job.submitted_unix_s


async def test_a_dead_process_is_started_again(state: Path) -> None:
    async with running(state) as jobs:
        job = await ended(jobs, (await jobs.submit(export("dies-once"), "")).id)
        assert (job.state, job.attempts) == (jobs_pb2.JOB_STATE_SUCCEEDED, 2)
        assert list(job.results) == ["half@1", "whole@2"]


async def test_a_process_that_dies_again_and_again_fails(state: Path) -> None:
    async with running(state) as jobs:
        job = await ended(jobs, (await jobs.submit(export("dies"), "")).id)
        assert (job.state, job.attempts) == (jobs_pb2.JOB_STATE_FAILED, 3)
        assert "died 3 times, the last time by SIGKILL" in job.error and job.log in job.error


@pytest.mark.parametrize("what", ["slow", "stubborn"])
async def test_cancel_ends_the_process(state: Path, what: str) -> None:
    async with running(state) as jobs:
        id = (await jobs.submit(export(what), "")).id
        pid = (await reaches(jobs, id, "works")).pid
        job = await jobs.cancel(id)
        assert (job.state, job.attempts) == (jobs_pb2.JOB_STATE_CANCELLED, 1)
        assert not psutil.pid_exists(pid)
        assert list(job.results) == ["half@1"]
        assert not (Path(job.log).parent / "work").exists()
        assert (await jobs.cancel(id)).state == jobs_pb2.JOB_STATE_CANCELLED


async def test_resumed_while_it_is_being_paused(state: Path) -> None:
    async with running(state) as jobs:
        id = (await jobs.submit(export("stubborn"), "")).id
        waiting = (await jobs.submit(export("good"), "")).id
        await reaches(jobs, id, "works")
        async with asyncio.timeout(30):
            pausing = asyncio.create_task(jobs.pause(id))
            await asyncio.sleep(0)  # it has been asked
            await jobs.resume(id)
            await pausing  # though it is not paused any more
            for _ in range(2):  # queued, or running again
                await asyncio.gather(jobs.pause(id), jobs.resume(id))
            await jobs.cancel(id)
            assert (await ended(jobs, waiting)).state == jobs_pb2.JOB_STATE_SUCCEEDED


async def test_cancel_of_a_queued_job_starts_nothing(state: Path) -> None:
    async with running(state) as jobs:
        await jobs.submit(export("slow"), "")
        id = (await jobs.submit(export("slow"), "")).id
        job = await jobs.cancel(id)
        assert (job.state, job.attempts) == (jobs_pb2.JOB_STATE_CANCELLED, 0)


async def test_cancel_of_an_ended_job_changes_nothing(state: Path) -> None:
    async with running(state) as jobs:
        job = await ended(jobs, (await jobs.submit(export("good"), "")).id)
        assert await jobs.cancel(job.id) == job


async def test_a_new_server_adopts_what_runs_and_starts_what_died(state: Path) -> None:
    first = core(state)
    first.open()
    id = (await first.submit(export("slow"), "r")).id
    queued = (await first.submit(export("good"), "")).id
    pid = (await reaches(first, id, "works")).pid
    await first.close()
    assert psutil.pid_exists(pid)
    async with running(state) as second:
        assert (await second.submit(export("slow"), "r")).id == id
        adopted = await reaches(second, id, "works")
        assert (adopted.pid, adopted.attempts) == (pid, 1)
        await second.close()
    await _gone(pid)  # `running` killed it, while no server watched
    async with running(state) as third:
        again = await reaches(third, id, "works")
        assert again.pid != pid and again.attempts == 2
        assert (await third.cancel(id)).state == jobs_pb2.JOB_STATE_CANCELLED
        assert (await ended(third, queued)).state == jobs_pb2.JOB_STATE_SUCCEEDED


async def test_what_ended_while_no_server_watched_is_known(state: Path) -> None:
    first = core(state)
    first.open()
    id = (await first.submit(export("good"), "")).id
    pid = (await reaches(first, id, "works")).pid
    await first.close()
    await _gone(pid)
    async with running(state) as second:
        job = await ended(second, id)
        assert (job.state, job.attempts) == (jobs_pb2.JOB_STATE_SUCCEEDED, 1)
        assert list(job.results) == ["half@1", "whole@2"]


async def test_cancelling_goes_on_after_a_restart(state: Path) -> None:
    first = core(state)
    first.open()
    id = (await first.submit(export("stubborn"), "")).id
    pid = (await reaches(first, id, "works")).pid
    cancelling = asyncio.create_task(first.cancel(id))
    await asyncio.sleep(0.3)
    await first.close()
    cancelling.cancel()
    assert psutil.pid_exists(pid)
    async with running(state) as second:
        assert (await ended(second, id)).state == jobs_pb2.JOB_STATE_CANCELLED
        await _gone(pid)


async def test_two_servers_cannot_have_the_same_jobs(state: Path) -> None:
    async with running(state):
        with pytest.raises(FailedPrecondition) as caught:
            core(state).open()
        assert caught.value.reason == "ALREADY_RUNNING"


async def test_the_oldest_ended_jobs_are_forgotten(state: Path) -> None:
    async with running(state, keep=2) as jobs:
        ids: list[str] = []
        for _ in range(4):
            ids.append((await jobs.submit(export("bad"), f"r{len(ids)}")).id)
            await ended(jobs, ids[-1])
        assert [j.id for j in jobs.list()] == [ids[3], ids[2]]
        assert sorted(p.name for p in (state / "jobs").iterdir() if p.is_dir()) == ids[2:]


async def test_an_unfinished_folder_is_removed(state: Path) -> None:
    (state / "jobs" / "20200101T000000.000").mkdir(parents=True)
    async with running(state) as jobs:
        assert jobs.list() == [] and len(list((state / "jobs").iterdir())) == 1


async def test_a_submission_that_cannot_be_written_leaves_nothing(state: Path) -> None:
    async with running(state) as jobs:
        (state / "jobs").rename(state / "aside")
        (state / "jobs").write_text("a file where the folder should be")
        with pytest.raises(OSError, match="jobs"):
            await jobs.submit(export("good"), "r")
        assert jobs.list() == []
        (state / "jobs").unlink()
        (state / "aside").rename(state / "jobs")
        job = await jobs.submit(export("good"), "r")
        assert (await ended(jobs, job.id)).state == jobs_pb2.JOB_STATE_SUCCEEDED


async def test_a_job_whose_folder_is_gone_fails(state: Path) -> None:
    async with running(state) as jobs:
        await jobs.submit(export("slow"), "")
        id = (await jobs.submit(export("good"), "")).id
        folder = state / "jobs" / id
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        await jobs.cancel(jobs.list()[1].id)
        job = await ended(jobs, id)
        assert job.state == jobs_pb2.JOB_STATE_FAILED and "cannot be written" in job.error


async def _gone(pid: int) -> None:
    until = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


async def test_ends_are_told_and_looks_are_progress(state: Path) -> None:
    told: list[tuple[str, dict[str, object]]] = []
    looks: list[float] = []
    jobs = core(
        state,
        tell=lambda topic, **facts: told.append((topic, dict(facts))),
        looked=lambda: looks.append(time.monotonic()),
    )
    jobs.open()
    try:
        good = await ended(jobs, (await jobs.submit(export("good"), "")).id)
        assert looks, "who watches a job waits for nothing else"
        slow = (await jobs.submit(export("slow"), "")).id
        queued = (await jobs.submit(export("good"), "")).id
        await jobs.cancel(queued)
        await jobs.cancel(slow)
    finally:
        await jobs.close()
    assert {topic for topic, _ in told} == {"job.ended"}
    assert [(facts["job"], facts["state"]) for _, facts in told] == [
        (good.id, "succeeded"),
        (queued, "cancelled"),
        (slow, "cancelled"),
    ]
    assert told[0][1]["results"] == ["half@1", "whole@2"] and told[0][1]["kind"] == "export_onnx"
