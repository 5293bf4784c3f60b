"""Moves aliases to a version, watches how calls on it end, and takes the move back."""

from __future__ import annotations

import asyncio
import json
import time

import grpc

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.storage.v1 import aliases_pb2 as pb
from llmos.api.storage.v1 import aliases_pb2_grpc
from llmos.lib.errors import FailedPrecondition, NotFound
from llmos.lib.rpc import from_rpc_error
from llmos.servers.optimizer.job.chains.live import Calls, Watch
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.storage import Storage, patiently
from llmos.servers.optimizer.train.table import write_json

_LOOK_S = 0.5
_MAX_FAILED = 0.01
_MIN_CALLS = 20


class Promoter:
    """Moves the canary first, if there is one, then the alias."""

    def __init__(self, context: JobContext, promotion: jobs_pb2.Promotion) -> None:
        """Move nothing yet."""
        self._context, self._promotion = context, promotion
        self._storage = context.channel("storage")
        self._aliases: aliases_pb2_grpc.AliasesAsyncStub = aliases_pb2_grpc.AliasesStub(
            self._storage
        )

    async def run(self, ref: str) -> None:
        """Do it. Raises FailedPrecondition ROLLED_BACK when calls on the version go badly.

        A try after a killed one goes on with the alias that was being watched: what was watched to
        its end is not judged again, which would leave the alias after it where it is.
        """
        kept = self._context.work / "promotion.json"
        if not kept.exists():
            write_json(kept, {"old": await self._old(ref), "watched": []})
        done = json.loads(kept.read_text())
        for alias in filter(None, (self._promotion.canary, self._promotion.alias)):
            if alias in done["watched"]:
                continue
            self._context.tell(f"moves {alias} to {ref}", 0.92)
            before = await self._before(done["old"])
            revision = await self._move(ref, alias)
            if self._promotion.watch_s:
                self._context.tell(f"watches calls on {ref}", 0.95)
                if why := await self._watch(ref, before):
                    await self._back(ref, alias, revision)
                    raise FailedPrecondition(
                        "ROLLED_BACK", f"{alias} was moved to {ref} and back again: {why}."
                    )
            done["watched"].append(alias)
            write_json(kept, done)

    async def _old(self, ref: str) -> str:
        """Return the version that the alias means now, where calls on it are compared."""
        if not self._promotion.max_slowdown:
            return ""
        try:
            name = f"{ref.partition('@')[0]}@{self._promotion.alias}"
            found = await Storage(self._storage).version(name)
        except NotFound:  # the first one
            return ""
        old = f"{found.name}@{found.version}"
        return "" if old == ref else old

    async def _before(self, old: str) -> Calls:
        """Return the calls on a version so far; none of none."""
        if not old:
            return Calls()
        return await Watch(old, since_start=True).look(self._context.channel("kernel"))

    async def _move(self, ref: str, alias: str) -> int:
        model, _, version = ref.partition("@")

        async def call() -> pb.SetAliasResponse:
            request = pb.SetAliasRequest(model=model, alias=alias, version=int(version))
            return await self._aliases.SetAlias(request, timeout=60)

        return int((await patiently(call)).alias.revision)

    async def _back(self, ref: str, alias: str, revision: int) -> None:
        model = ref.partition("@")[0]

        async def call() -> None:
            request = pb.RollbackAliasRequest(model=model, alias=alias, expected_revision=revision)
            try:
                await self._aliases.RollbackAlias(request, timeout=60)
            except grpc.RpcError as exc:
                if from_rpc_error(exc).reason != "NOTHING_BEFORE":
                    raise
                gone = pb.DeleteAliasRequest(model=model, alias=alias, expected_revision=revision)
                await self._aliases.DeleteAlias(gone, timeout=60)

        await patiently(call)

    async def _watch(self, ref: str, before: Calls) -> str:
        """Return what is wrong with the calls on a version's workers, as the kernel counts them."""
        until = time.monotonic() + self._promotion.watch_s
        watch, kernel = Watch(ref), self._context.channel("kernel")
        while True:
            if why := self._wrong(await watch.look(kernel), before):
                return why
            if time.monotonic() > until:
                return ""
            await asyncio.sleep(_LOOK_S)

    def _wrong(self, now: Calls, before: Calls) -> str:
        limits = self._promotion
        most, enough = limits.max_failed or _MAX_FAILED, limits.min_calls or _MIN_CALLS
        if now.served and now.failed / now.served > most:
            return f"{now.failed} of {now.served} calls failed, at most {most:.1%} may"
        if now.timed < enough:
            return ""
        if limits.max_p99_ms and now.p99_ms > limits.max_p99_ms:
            return (
                f"the 99th percentile of {now.timed} calls is {now.p99_ms:.3g} ms, at most "
                f"{limits.max_p99_ms:.3g} ms may be"
            )
        slowest = limits.max_slowdown * before.p99_ms
        if limits.max_slowdown and before.timed >= enough and now.p99_ms > slowest:
            return (
                f"the 99th percentile of {now.timed} calls is {now.p99_ms:.3g} ms, of the version "
                f"before it was {before.p99_ms:.3g} ms; at most {limits.max_slowdown:.3g} times "
                "that may be"
            )
        return ""
