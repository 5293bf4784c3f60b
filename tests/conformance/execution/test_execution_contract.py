"""What every face of the execution manager does: the core in process, and the service over gRPC.

Real zygote, real workers, real ONNX models; the seams to storage and memory are filled by the
small local implementations below.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc
import pytest
from execution_stack import until
from model_files import tiny_encoder, tiny_onnx

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import execution_pb2_grpc
from llmos.lib.config import run_dir
from llmos.lib.errors import LLMOSError, NotFound, ResourceExhausted
from llmos.lib.host import records
from llmos.lib.rpc import from_rpc_error
from llmos.lib.serve import Server
from llmos.servers.execution.config import ExecutionConfig
from llmos.servers.execution.manager.core import Manager
from llmos.servers.execution.manager.model import Ref, Version, Worker
from llmos.servers.execution.manager.routing import DirectRouter
from llmos.servers.execution.manager.starting import read_options
from llmos.servers.execution.manager.zygote import ZygoteClient
from llmos.servers.execution.service import ExecutionService


class LocalCatalog:
    """Versions that are in a table."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self.known: dict[str, Version] = {}

    def add(self, version: Version, main: Path) -> None:
        self.known[version.ref] = version
        self.files[version.ref] = main

    async def resolve(self, ref: str) -> Version:
        wanted = Ref.parse(ref)
        found = [v for v in self.known.values() if v.name == wanted.name]
        found = [v for v in found if wanted.version in (0, v.version)]
        if not found:
            raise NotFound("NO_SUCH_MODEL", f"There is no model {ref!r}.")
        return max(found, key=lambda v: v.version)

    async def versions(self) -> list[Version]:
        return list(self.known.values())

    async def fetch(self, version: Version) -> Mapping[str, Path]:
        path = self.files[version.ref]
        return {path.name: path}

    async def settle(self) -> None: ...


class LocalGrants:
    """A budget; names what is idle and not pinned when it is short."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held: dict[str, Worker] = {}
        self.reported: list[str] = []

    async def devices(self) -> list[str]:
        return ["cpu"]

    async def acquire(self, worker: Worker, bytes: int, *, dry_run: bool = False) -> Sequence[str]:
        others = {g: w for g, w in self.held.items() if g != worker.grant}
        short = bytes + sum(w.granted_bytes for w in others.values()) - self.budget
        chosen = []
        for grant, other in others.items():
            if short > 0 and not other.pinned and not other.leases and not other.moving:
                chosen.append(grant)
                short -= other.granted_bytes
        if short > 0:
            retry = 0.05 if any(w.moving for w in others.values()) else None
            why = f"{short} bytes are missing."
            raise ResourceExhausted("OVER_BUDGET", why, retry_after_s=retry)
        if not chosen and not dry_run:
            self.held[worker.grant] = worker
        return chosen

    async def release(self, grant: str) -> None:
        self.held.pop(grant, None)

    async def report(self, workers: Sequence[Worker]) -> None:
        self.reported = [w.ref for w in workers]


class Face(Protocol):
    """What callers see, in terms of execution.proto."""

    async def models(self) -> dict[str, tuple[int, list[str], bool]]: ...
    async def load(
        self, model: str, pin: bool = False, options: pb.LoadOptions | None = None
    ) -> int: ...
    async def unload(self, model: str) -> bool: ...


class InProcess:
    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def models(self) -> dict[str, tuple[int, list[str], bool]]:
        rows = await self._manager.rows()
        return {
            r.version.ref: (r.state.value, r.worker.keys if r.worker else [], r.is_default)
            for r in rows
        }

    async def load(
        self, model: str, pin: bool = False, options: pb.LoadOptions | None = None
    ) -> int:
        asked = None if options is None else read_options(options)
        return (await self._manager.load(model, pin, options=asked, whole=True)).pid

    async def unload(self, model: str) -> bool:
        return await self._manager.unload(model)


class OverGrpc:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = execution_pb2_grpc.ExecutionStub(channel)

    async def models(self) -> dict[str, tuple[int, list[str], bool]]:
        answer = await self._stub.ListModels(pb.ListModelsRequest())
        return {
            f"{m.name}@{m.version}": (int(m.state), list(m.keys), m.is_default)
            for m in answer.models
        }

    async def load(
        self, model: str, pin: bool = False, options: pb.LoadOptions | None = None
    ) -> int:
        try:
            request = pb.LoadModelRequest(model=model, pin=pin, options=options)
            answer = await self._stub.LoadModel(request)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from None
        return answer.model.pid

    async def unload(self, model: str) -> bool:
        try:
            answer = await self._stub.UnloadModel(pb.UnloadModelRequest(model=model))
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from None
        return answer.was_loaded


@dataclass
class World:
    face: Face
    grants: LocalGrants
    state_dir: Path

    def workers(self) -> list[str]:
        found = records(run_dir(self.state_dir))
        return sorted(r.name for r in found if r.name.startswith("worker/"))


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(params=["in process", "over gRPC"])
async def world(
    request: pytest.FixtureRequest, state_dir: Path, tmp_path: Path
) -> AsyncIterator[World]:
    none = ExecutionConfig(state_dir=state_dir, kernel="none", threads=1)
    catalog, grants, router = LocalCatalog(), LocalGrants(300 << 20), DirectRouter()
    for version in (1, 2):
        path = tiny_onnx(tmp_path / f"{version}.onnx", seed=version)
        catalog.add(Version("a", version, "onnx", "predict"), path)
        catalog.add(Version("b", version, "onnx", "predict"), path)
    catalog.add(Version("c", 1, "onnx", "predict"), path)
    catalog.add(Version("enc", 1, "safetensors", "embed"), tiny_encoder(tmp_path / "enc"))
    (tmp_path / "broken.onnx").write_bytes(path.read_bytes()[:-40])
    catalog.add(Version("broken", 1, "onnx", "predict"), tmp_path / "broken.onnx")
    zygote = ZygoteClient(state_dir)
    manager = Manager(none, catalog, grants, router, zygote)
    zygote.start()
    manager.open([])
    async with contextlib.AsyncExitStack() as stack:
        face: Face = InProcess(manager)
        if request.param == "over gRPC":
            server = Server("execution", none)
            server.add(
                execution_pb2_grpc.add_ExecutionServicer_to_server,
                ExecutionService(manager, router),
            )
            await server.start()
            stack.push_async_callback(server.stop, 1)
            channel = grpc.aio.insecure_channel(server.address)
            face = OverGrpc(await stack.enter_async_context(channel))
        yield World(face, grants, state_dir)
        for ref, (state, _, _) in (await face.models()).items():
            if state in (pb.MODEL_STATE_READY, pb.MODEL_STATE_LOADING):
                await face.unload(ref)
    await manager.close()
    await zygote.stop()
    await router.close()


@pytest.fixture(scope="module", autouse=True)
def _orphans(state_dir: Path) -> Iterator[None]:
    yield
    for record in records(run_dir(state_dir)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)


STORED, READY = int(pb.MODEL_STATE_STORED), int(pb.MODEL_STATE_READY)
FAILED = int(pb.MODEL_STATE_FAILED)


async def test_nothing_is_loaded_at_first(world: World) -> None:
    models = await world.face.models()
    assert list(models) == ["a@1", "a@2", "b@1", "b@2", "broken@1", "c@1", "enc@1"]
    assert {m[0] for m in models.values()} == {STORED}
    assert [ref for ref, m in models.items() if m[2]] == ["a@2", "b@2", "broken@1", "c@1", "enc@1"]


async def test_loading_and_unloading(world: World) -> None:
    pid = await world.face.load("a@1")
    assert (await world.face.models())["a@1"] == (READY, ["a@1"], False)
    assert await world.face.load("a@1") == pid  # idempotent
    assert world.workers() == ["worker/a@1"]
    assert list(world.grants.held) == ["a@1#0"]
    assert await world.face.unload("a")  # the newest that is loaded
    assert not await world.face.unload("a@1")
    assert world.workers() == []
    assert not world.grants.held


async def test_at_the_same_time(world: World) -> None:
    pids = await asyncio.gather(*(world.face.load("a") for _ in range(8)))
    assert len(set(pids)) == 1
    ended = await asyncio.gather(*(world.face.unload("a") for _ in range(8)))
    assert any(ended)
    mixed = [world.face.load("a"), world.face.unload("a"), world.face.load("a")]
    await asyncio.gather(*mixed)
    assert len(world.workers()) <= 1


async def test_a_plain_name_moves_to_the_newest(world: World) -> None:
    await world.face.load("a@1")
    await world.face.load("a")
    models = await world.face.models()
    assert models["a@2"] == (READY, ["a@2", "a"], True)
    assert models["a@1"] == (READY, ["a@1"], False)  # loaded by itself: it stays


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("", "BAD_NAME"),
        ("a b", "BAD_NAME"),
        ("nosuch", "NO_SUCH_MODEL"),
        ("a@3", "NO_SUCH_MODEL"),
        ("enc", "NO_ENGINE"),
        ("broken", "LOAD_FAILED"),
    ],
)
async def test_what_cannot_be_loaded(world: World, model: str, reason: str) -> None:
    with pytest.raises(LLMOSError) as caught:
        await world.face.load(model)
    assert caught.value.reason == reason
    assert world.workers() == []
    assert not world.grants.held
    if reason in ("NO_ENGINE", "LOAD_FAILED"):
        assert (await world.face.models())[f"{model}@1"][0] == FAILED


async def test_making_room(world: World) -> None:
    await world.face.load("a")
    await world.face.load("b", pin=True)
    await world.face.load("c")
    assert world.workers() == ["worker/b@2", "worker/c@1"]
    await world.face.load("c", pin=True)
    with pytest.raises(ResourceExhausted) as caught:
        await world.face.load("a")
    assert caught.value.reason == "OVER_BUDGET"


async def test_several_workers_of_one_version(world: World) -> None:
    two = pb.LoadOptions(instances=2)
    pid = await world.face.load("a", options=two)
    assert await world.face.load("a", options=two) == pid
    assert world.workers() == ["worker/a@2", "worker/a@2#1"]
    assert sorted(world.grants.held) == ["a@2#0", "a@2#1"]
    assert (await world.face.models())["a@2"] == (READY, ["a@2", "a"], True)
    await world.face.load("a", options=pb.LoadOptions(instances=1))
    assert world.workers() == ["worker/a@2"] and list(world.grants.held) == ["a@2#0"]
    with pytest.raises(LLMOSError, match="fewer instances") as caught:
        await world.face.load("a", options=pb.LoadOptions(instances=9))
    assert caught.value.reason == "OVER_BUDGET"
    await until(lambda: world.workers() == ["worker/a@2"])
    assert await world.face.load("a") == pid, "as before what could not be"
    assert await world.face.unload("a") and world.workers() == [] and not world.grants.held


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (pb.LoadOptions(device="cuda:77"), "cuda:77"),
        (pb.LoadOptions(precision="int8"), "language models only"),
        (pb.LoadOptions(instances=2, serving={"batching.most": "8"}), "batching.most is not known"),
        (pb.LoadOptions(serving={"batching.max": "0"}), "batching.max must be 1"),
        (pb.LoadOptions(serving={"instances.count": "0"}), "instances.count must be 1"),
    ],
)
async def test_bad_options_leave_nothing_behind(
    world: World, options: pb.LoadOptions, words: str
) -> None:
    with pytest.raises(LLMOSError, match=words) as caught:
        await world.face.load("c", options=options)
    assert caught.value.reason == "BAD_OPTION"
    assert world.workers() == [] and not world.grants.held
    if options.device:
        await world.face.load("c")  # by the configuration again
        await world.face.unload("c")


async def test_a_dead_worker_is_forgotten(world: World) -> None:
    pid = await world.face.load("a")
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not world.grants.held)
    assert (await world.face.models())["a@2"][0] == STORED
    assert await world.face.load("a") != pid
