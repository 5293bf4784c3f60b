"""How a worker comes to life: files, device, grant, fork, load."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from llmos.api.execution.v1 import execution_pb2
from llmos.api.execution.v1 import zygote_pb2 as pb
from llmos.lib import log as logs
from llmos.lib.errors import FailedPrecondition, LLMOSError, ResourceExhausted, Unavailable
from llmos.servers.execution.config import ExecutionConfig
from llmos.servers.execution.engine.select import require
from llmos.servers.execution.engine.serving.declared import instances
from llmos.servers.execution.manager.crashes import CrashLog, how_it_ended
from llmos.servers.execution.manager.drafts import draft_model, worker_files
from llmos.servers.execution.manager.logs import keep_level
from llmos.servers.execution.manager.model import State, Version, Worker
from llmos.servers.execution.manager.options import Options, own_cores, place
from llmos.servers.execution.manager.process import waiting_for
from llmos.servers.execution.manager.seams import (
    Catalog,
    Child,
    Crashed,
    Forge,
    Grants,
    Router,
    ZygoteLost,
)
from llmos.servers.execution.manager.table import Table

_ZYGOTES = 3  # how many zygotes may die under one load

log = logging.getLogger(__name__)


class Starter:
    """Starts workers; keeps no state but how long loads took."""

    def __init__(
        self,
        config: ExecutionConfig,
        catalog: Catalog,
        grants: Grants,
        router: Router,
        forge: Forge,
        crashes: CrashLog,
        evict: Callable[[str], Awaitable[None]],
        report: Callable[[], Awaitable[None]],
        progress: Callable[[], None],
        table: Table,
    ) -> None:
        """Take what is needed; `evict` ends the holder of a grant, `report` reports all.

        progress: called while a worker is seen to load. table: all workers.
        """
        self._progress = progress
        self._crashes = crashes
        self._config = config
        self._catalog = catalog
        self._grants = grants
        self._router = router
        self._forge = forge
        self._evict = evict
        self._report = report
        self._table = table
        self._load_s: dict[str, float] = {}  # how long loads took, by ref

    async def start(self, worker: Worker, version: Version, keys: Sequence[str]) -> None:
        """Make `worker` ready under its ref and `keys`, or leave nothing behind.

        Raises FailedPrecondition NO_ENGINE, IS_ADAPTER, BAD_DRAFT, MISSING_EXTRA, CODE_NOT_ALLOWED;
        Unavailable CRASH_LOOP, LOAD_FAILED; ResourceExhausted OVER_BUDGET.
        """
        _runnable(version)
        if version.format == "python" and not self._config.python_models:
            raise FailedPrecondition(
                "CODE_NOT_ALLOWED",
                f"{worker.ref} brings Python code, which would run with all rights of the user of "
                "LLM OS; set python_models = true in [execution] if you trust who imports models.",
            )
        self._crashes.check(worker.id)
        files = await self._catalog.fetch(version)
        order = await self._order(worker, version, files, keys)
        try:
            async with asyncio.timeout(self._config.load_timeout_s):
                await self._persist(worker, order)
        except TimeoutError:
            if worker.refused is not None:
                raise worker.refused from None
            raise Unavailable(
                "LOAD_FAILED",
                f"Loading {worker.ref} took over {self._config.load_timeout_s:g} s and was given "
                "up; raise load_timeout_s in [execution].",
            ) from None

    async def _persist(self, worker: Worker, order: pb.WorkerOrder) -> None:
        killed = False
        for _ in range(_ZYGOTES):
            try:
                await self._attempt(worker, order)
                return
            except ZygoteLost:
                log.warning("the zygote died during a load", extra={"worker": worker.ref})
            except Crashed as exc:
                cause = how_it_ended(self._config.state_dir, worker.id, exc.args[0])
                self._crashes.add(worker.id, cause, exc.args[0])
                if exc.args[0] == -signal.SIGKILL and not killed:
                    # By somebody else, maybe when it served already: calls that wait get another.
                    log.warning("a loading worker was killed", extra={"worker": worker.id})
                    killed = True
                    continue
                raise Unavailable(
                    "LOAD_FAILED", f"The worker of {worker.ref} {cause} while loading."
                ) from None
        raise Unavailable(
            "LOAD_FAILED", f"{_ZYGOTES} zygotes died while {worker.ref} was loading; see its log."
        )

    async def _attempt(self, worker: Worker, order: pb.WorkerOrder) -> None:
        child: Child | None = None
        try:
            child = await self._forge.fork(order)
            worker.process = child.process
            async with waiting_for(child.process, self._progress):
                await self._acquire(worker, await child.planned())
                began = time.monotonic()
                info = await child.go(worker.granted_bytes)
                self._load_s[worker.ref] = worker.load_s = time.monotonic() - began
        except BaseException:
            # Shielded: whoever cancels a load must not leave a process or a grant behind.
            await asyncio.shield(self._undo(worker, child))
            raise
        describe(worker, info)
        await keep_level(worker, self._router)

    async def _undo(self, worker: Worker, child: Child | None) -> None:
        if child is not None:
            await child.process.kill()
        worker.process = None
        if worker.granted_bytes:
            worker.granted_bytes = 0
            try:
                await self._grants.release(worker.grant)
            except LLMOSError as exc:  # memory is away: what is not reported is dropped there
                log.warning("cannot release", extra={"grant": worker.grant, "cause": exc.message})

    async def _acquire(self, worker: Worker, needed: int) -> None:
        """Get room, however long it takes: memory keeps our place while we ask again."""
        while True:
            await self._report()  # who is idle by now can be evicted
            try:
                evict = await self._grants.acquire(worker, needed)
            except ResourceExhausted as exc:
                if exc.retry_after_s is None:
                    raise
                worker.refused = exc
                self._progress()  # it was asked and did answer
                await asyncio.sleep(exc.retry_after_s)
                continue
            if not evict:
                worker.granted_bytes, worker.refused = needed, None
                return
            if any(w.grant in evict for w in self._table.of(worker.ref)):
                await self._grants.release(worker.grant)  # gives up our place
                raise ResourceExhausted(
                    "OVER_BUDGET",
                    f"There is no room for another instance of {worker.ref} on {worker.device}; "
                    "unload other models, or ask for fewer instances.",
                )
            log.info("evicting", extra={"grants": ", ".join(evict), "for": worker.id})
            await asyncio.gather(*map(self._evict, evict))

    async def plan(self, worker: Worker, version: Version) -> tuple[int, Sequence[str]]:
        """Return the bytes that a worker needs, and what would have to go; loads nothing.

        Raises as `start`.
        """
        _runnable(version)
        files = await self._catalog.fetch(version)
        child = await self._forge.fork(await self._order(worker, version, files, []))
        try:
            needed = await child.planned()
        except Crashed as exc:
            cause = how_it_ended(self._config.state_dir, worker.id, exc.args[0])
            raise Unavailable("LOAD_FAILED", f"The worker of {worker.ref} {cause}.") from None
        except ZygoteLost:
            raise Unavailable("LOAD_FAILED", "The zygote died; try again.") from None
        finally:
            await asyncio.shield(child.process.kill())
        await self._report()
        return needed, await self._grants.acquire(worker, needed, dry_run=True)

    async def _order(
        self, worker: Worker, version: Version, files: Mapping[str, Path], keys: Sequence[str]
    ) -> pb.WorkerOrder:
        devices = await self._grants.devices()
        options = worker.options
        own = instances(files, dict(options.serving))
        worker.device = place(
            options.device, own.devices, self._config.device, devices, worker.replica
        )
        threads = options.threads or own.threads
        if threads and worker.device == "cpu":
            worker.cpus = own_cores(threads, (w.cpus for w in self._table if w is not worker))
        worker.threads = threads or self._config.threads
        worker.load_s = self._load_s.get(worker.ref, 0.0)
        listen = ""
        if self._router.kernel == "none":
            digest = hashlib.sha256(worker.id.encode()).hexdigest()[:12]
            listen = f"unix:{self._config.run_dir()}/w{digest}.sock"
        draft = await draft_model(self._catalog, version, files, options)
        worker.draft = draft.ref if draft is not None else ""
        return pb.WorkerOrder(
            ref=worker.ref,
            format=version.format,
            task=version.task,
            files=worker_files(version, files),
            draft=draft,
            context_length=version.context_length,
            device=worker.device,
            replica=worker.replica,
            threads=worker.threads,
            cpus=worker.cpus,
            precision=self._config.precision,
            options=options_message(options),
            keys=keys,
            pinned=worker.pinned,
            kernel=self._router.kernel,
            listen=listen,
            state_dir=str(self._config.state_dir),
            log_level=logs.shown(),
            credits=self._config.credits,
            stall_ms=int(self._config.worker_stall_s * 1000),
        )


def _runnable(version: Version) -> None:
    if version.adapter:
        for_model = f" for {version.base}" if version.base else ""
        raise FailedPrecondition(
            "IS_ADAPTER",
            f"{version.ref} is a LoRA adapter{for_model}, and no model by itself: name it as "
            "`adapter` of a request to its model, or tag it base=MODEL and ask the HTTP gateway "
            "for it as for a model.",
        )
    require(version.ref, version.format, version.task)


def describe(worker: Worker, info: pb.WorkerInfo) -> None:
    """Take over what a ready worker says about itself."""
    worker.engine = info.engine
    worker.task = info.task
    worker.device = info.device
    worker.granted_bytes = info.granted_bytes
    worker.keys = list(info.keys)
    worker.pinned = info.pinned
    worker.context_length = info.context_length
    worker.listen = info.listen
    worker.options = read_options(info.options)
    worker.threads = info.threads
    worker.draft = info.draft
    worker.log_level = info.log_level
    worker.ready_at = time.monotonic()
    worker.state = State.READY


def options_message(options: Options) -> execution_pb2.LoadOptions:
    """Return options as they travel."""
    return execution_pb2.LoadOptions(
        precision=options.precision,
        threads=options.threads,
        device=options.device,
        instances=options.instances,
        serving=dict(options.serving),
    )


def read_options(message: execution_pb2.LoadOptions) -> Options:
    """Return options that travelled."""
    serving = tuple(sorted(message.serving.items()))
    return Options(message.precision, message.threads, message.device, message.instances, serving)
