"""/v1/batches: many requests from a file, answered in the class BATCH into a file.

Every answered line is kept at once. A batch whose gateway died is taken up again by whichever
gateway is asked about it next; only lines that were being answered are answered again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llmos.lib.errors import FailedPrecondition, LLMOSError, NotFound
from llmos.servers.gateway import body, trace
from llmos.servers.gateway.batch_run import Ask, Line, answered, lines_of
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.documents import Documents, Metadata, metadata_of
from llmos.servers.gateway.files import Files
from llmos.servers.gateway.schema import validated

Json = dict[str, Any]
_ROOT, _LINES = "llmos/gateway/batches/", "llmos/gateway/batch-lines/"
_AT_ONCE = 8
_BEAT_S, _DEAD_S = 5.0, 20.0
_DAY_S = 86400
log = logging.getLogger(__name__)


class BatchBody(BaseModel):
    """Body of POST /v1/batches."""

    model_config = ConfigDict(strict=True, extra="ignore")

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    completion_window: Literal["24h"] = "24h"
    metadata: dict[str, str] | None = None


class Batches:
    """Batches of all tenants; each sees its own."""

    def __init__(self, documents: Documents, files: Files, ask: Ask, config: GatewayConfig) -> None:
        """Keep them in `documents`; lines are answered by `ask`."""
        self._documents, self._files, self._ask, self._config = documents, files, ask, config
        self._running: dict[str, asyncio.Task[None]] = {}

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches", self.list_all, methods=["GET"]),
            Route("/v1/batches/{id}", self.show, methods=["GET"]),
            Route("/v1/batches/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """Begin a batch; a file that cannot be one is refused at once."""
        raw = await body.read(request, self._config.max_body_bytes, self._config.body_timeout_s)
        asked, who = validated(BatchBody, raw), metadata_of(request)
        _, content = await self._files.read(asked.input_file_id, who)
        count = len(lines_of(content, asked.endpoint))
        now = int(time.time())
        batch: Json = {
            "id": f"batch_{uuid.uuid4().hex}",
            "object": "batch",
            "endpoint": asked.endpoint,
            "errors": None,
            "input_file_id": asked.input_file_id,
            "completion_window": asked.completion_window,
            "status": "in_progress",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "in_progress_at": now,
            "expires_at": now + _DAY_S,
            "request_counts": {"total": count, "completed": 0, "failed": 0},
            "metadata": asked.metadata,
            "beat": time.time(),
        }
        await self._documents.put(_ROOT + batch["id"], batch, who)
        self._begin(batch, request, who)
        return JSONResponse(_shown(batch))

    async def show(self, request: Request) -> Response:
        """Show a batch."""
        batch = await self._found(request, metadata_of(request))
        return JSONResponse(_shown(batch))

    async def list_all(self, request: Request) -> Response:
        """List the batches, newest first."""
        found = await self._documents.list(_ROOT, metadata_of(request))
        found.sort(key=lambda batch: batch["created_at"], reverse=True)
        data = [_shown(batch) for batch in found]
        return JSONResponse({"object": "list", "data": data, "has_more": False})

    async def cancel(self, request: Request) -> Response:
        """Stop a batch; what is answered comes into its file. Another gateway's stops soon."""
        who = metadata_of(request)
        batch = await self._found(request, who)
        if batch["status"] not in ("in_progress", "cancelling"):
            raise FailedPrecondition(
                "BATCH_ENDED", f"The batch is {batch['status']}; there is nothing to cancel."
            )
        batch |= {"status": "cancelling", "cancelling_at": int(time.time())}
        await self._documents.put(_ROOT + batch["id"], batch, who)
        return JSONResponse(_shown(batch))

    async def _found(self, request: Request, who: Metadata) -> Json:
        id = request.path_params["id"]
        batch = await self._documents.get(_ROOT + id, who) if len(id) <= 64 else None
        if batch is None:
            raise NotFound("NO_SUCH_BATCH", f"There is no batch {id[:64]!r}.")
        ended = batch["status"] not in ("in_progress", "cancelling")
        if not ended and time.time() - batch["beat"] > _DEAD_S:
            self._begin(batch, request, who)
        return batch

    def _begin(self, batch: Json, request: Request, who: Metadata) -> None:
        id = batch["id"]
        if id not in self._running:
            task = asyncio.create_task(self._run(batch, trace.of(request.scope).tenant, who))
            self._running[id] = task
            task.add_done_callback(lambda _: self._running.pop(id, None))

    async def _run(self, batch: Json, tenant: str, who: Metadata) -> None:
        try:
            await self._answer_all(batch, tenant, who)
        except LLMOSError as exc:
            # Nothing is lost: the next who asks about the batch takes it up again.
            log.warning("batch %s pauses: %s", batch["id"], exc)

    async def _answer_all(self, batch: Json, tenant: str, who: Metadata) -> None:
        place = f"{_LINES}{batch['id']}/"
        _, content = await self._files.read(batch["input_file_id"], who)
        done = {line["line"]: line for line in await self._documents.list(place, who)}
        left = [ln for ln in lines_of(content, batch["endpoint"]) if ln.number not in done]
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(line: Line) -> None:
            async with gate:
                result = await answered(self._ask, line, tenant)
                await self._documents.put(f"{place}{line.number:08}", result, who)
                done[line.number] = result

        tasks = {asyncio.create_task(one(line)) for line in left}
        try:
            pending = tasks
            while pending:
                ended, pending = await asyncio.wait(pending, timeout=_BEAT_S)
                for task in ended:
                    task.result()
                batch = await self._beat(batch, list(done.values()), who)
                if batch["status"] == "cancelling":
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._finish(batch, [done[number] for number in sorted(done)], who)
        await self._documents.delete(place, who)

    async def _beat(self, batch: Json, done: list[Json], who: Metadata) -> Json:
        now = await self._documents.get(_ROOT + batch["id"], who) or batch
        now |= {"beat": time.time(), "request_counts": _counts(batch, done)}
        await self._documents.put(_ROOT + batch["id"], now, who)
        return now

    async def _finish(self, batch: Json, done: list[Json], who: Metadata) -> None:
        cancelled, at = batch["status"] == "cancelling", int(time.time())
        good = [one["result"] for one in done if one["ok"]]
        bad = [one["result"] for one in done if not one["ok"]]
        for name, results in (("output", good), ("error", bad)):
            if results:
                content = b"".join(json.dumps(r).encode() + b"\n" for r in results)
                title = f"{batch['id']}_{name}.jsonl"
                file = await self._files.add(title, content, "batch", who)
                batch[f"{name}_file_id"] = file["id"]
        status = "cancelled" if cancelled else "completed"
        batch |= {"status": status, f"{status}_at": at, "request_counts": _counts(batch, done)}
        await self._documents.put(_ROOT + batch["id"], batch, who)


def _counts(batch: Json, done: list[Json]) -> Json:
    good = sum(one["ok"] for one in done)
    total = batch["request_counts"]["total"]
    return {"total": total, "completed": good, "failed": len(done) - good}


def _shown(batch: Json) -> Json:
    return {name: value for name, value in batch.items() if name != "beat"}
