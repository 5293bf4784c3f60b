"""Jobs that a job submitted: cancelled, paused, resumed with it, also after a server's death."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_core import ended, export, reaches, running

from llmos.api.optimizer.v1 import jobs_pb2 as pb


async def test_cancelled_with_it(tmp_path: Path) -> None:
    async with running(tmp_path, parallel=2) as jobs:
        parent = (await jobs.submit(export("slow"), "")).id
        child = (await jobs.submit(export("slow"), f"{parent}/step-1")).id
        waiting = (await jobs.submit(export("good"), f"{parent}/step-2")).id
        other = (await jobs.submit(export("good"), f"{parent}0/step-1")).id
        for id in (parent, child):
            await reaches(jobs, id, "works")
        await jobs.cancel(parent)
        found = {job.id: job.state for job in jobs.list()}
        assert {found[id] for id in (parent, child, waiting)} == {pb.JOB_STATE_CANCELLED}
        late = await jobs.submit(export("good"), f"{parent}/step-3")
        assert late.state == pb.JOB_STATE_CANCELLED  # submitted as its parent was cancelled
        assert (await ended(jobs, other)).state == pb.JOB_STATE_SUCCEEDED


async def test_cancelled_when_it_dies_for_good(tmp_path: Path) -> None:
    async with running(tmp_path, parallel=2) as jobs:
        parent = (await jobs.submit(export("bad"), "")).id
        child = (await jobs.submit(export("slow"), f"{parent}/step-1")).id
        assert (await ended(jobs, parent)).state == pb.JOB_STATE_FAILED
        assert (await ended(jobs, child)).state == pb.JOB_STATE_CANCELLED


@pytest.mark.parametrize("cancel", [False, True])
async def test_paused_with_it(tmp_path: Path, cancel: bool) -> None:
    async with running(tmp_path, parallel=2) as jobs:
        parent = (await jobs.submit(export("slow"), "")).id
        child = (await jobs.submit(export("slow"), f"{parent}/step-1")).id
        for id in (parent, child):
            await reaches(jobs, id, "works")
        await jobs.pause(parent)
        late = await jobs.submit(export("slow"), f"{parent}/step-2")
        assert late.state == pb.JOB_STATE_PAUSED  # submitted as its parent was paused
        assert {job.state for job in jobs.list()} == {pb.JOB_STATE_PAUSED}
    async with running(tmp_path, parallel=2) as jobs:  # the next server knows
        assert {job.state for job in jobs.list()} == {pb.JOB_STATE_PAUSED}
        if cancel:
            await jobs.cancel(parent)
            assert {job.state for job in jobs.list()} == {pb.JOB_STATE_CANCELLED}
            return
        await jobs.resume(parent)
        for id in (parent, child):
            await reaches(jobs, id, "works")
