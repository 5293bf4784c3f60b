"""Loads, kills and unloads again and again leave nothing behind in any server."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
from execution_stack import Client, Stack, client, stack
from model_files import tiny_onnx

from llmos.api.kernel.v1 import admin_pb2
from llmos.api.memory.v1 import residency_pb2

CYCLES = 8


async def test_loads_and_unloads_leave_nothing_behind(tmp_path: Path) -> None:
    """Children, shared memory, ports, grants: as many as after the first cycle.

    Of descriptors fewer come than one in two cycles: threads of a pool may open theirs late.
    """
    with stack(tmp_path / "s") as running:
        async with client(running) as llmos:
            await llmos.import_model(str(tiny_onnx(tmp_path / "tiny.onnx")), "m")
            await cycle(running, llmos)
            before = await held(running, llmos)
            for number in range(CYCLES):
                await cycle(running, llmos, killed=number == CYCLES // 2)
            async with asyncio.timeout(30):  # what ends at the worker's end may take its time
                while grown(before, await held(running, llmos)):
                    await asyncio.sleep(0.1)


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return what there is more of than there may be."""
    room = {name: CYCLES // 2 if name.endswith("descriptors") else 0 for name in after}
    more = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in more.items() if count > room[name]}


async def cycle(running: Stack, llmos: Client, killed: bool = False) -> None:
    await llmos.infer("m")
    if killed:
        os.kill(running.record("worker/m@1").pid, signal.SIGKILL)
        await llmos.infer("m")
    await llmos.unload("m")


async def held(running: Stack, llmos: Client) -> dict[str, int]:
    found: dict[str, int] = {}
    for record in running.records(""):
        if record.name.startswith("worker/"):
            continue  # it is on its way out
        process = psutil.Process(record.pid)
        found[f"{record.name} descriptors"] = process.num_fds()
        found[f"{record.name} children"] = len(process.children())
    shm = running.processes.shm
    found["workers"] = len(running.records("worker/"))
    found["shared memory"] = len(list(shm.iterdir())) if shm.exists() else 0
    ports = await llmos.admin.ListPorts(admin_pb2.ListPortsRequest(), timeout=60)
    grants = await llmos.residency.ListGrants(residency_pb2.ListGrantsRequest(), timeout=60)
    return {**found, "ports": len(ports.ports), "grants": len(grants.grants)}
