"""/v1/fine_tuning/jobs: the optimizer's fine-tuning as the OpenAI API shows it.

The training file becomes a data set in storage: rows of `text`, of `prompt` and `completion`, or of
`messages`, which are written in ChatML as most small chat models have learnt it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

import grpc
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llmos.api.optimizer.v1 import jobs_pb2, jobs_pb2_grpc, train_pb2
from llmos.api.storage.v1 import data_pb2, data_pb2_grpc, uploads_pb2, uploads_pb2_grpc
from llmos.lib.errors import Internal, InvalidArgument, NotFound
from llmos.lib.rpc import from_rpc_error
from llmos.servers.gateway import body
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.documents import Metadata, metadata_of
from llmos.servers.gateway.files import Files
from llmos.servers.gateway.schema import validated

Json = dict[str, Any]
_TIMEOUT_S, _IMPORT_S = 30.0, 300.0
_PART = 256 << 10
_STATES = {
    jobs_pb2.JOB_STATE_QUEUED: "queued",
    jobs_pb2.JOB_STATE_RUNNING: "running",
    jobs_pb2.JOB_STATE_SUCCEEDED: "succeeded",
    jobs_pb2.JOB_STATE_FAILED: "failed",
    jobs_pb2.JOB_STATE_CANCELLED: "cancelled",
    jobs_pb2.JOB_STATE_PAUSED: "paused",
}
_STRICT = ConfigDict(strict=True, extra="forbid")


class Hyperparameters(BaseModel):
    """How to train; `auto` is the optimizer's own choice."""

    model_config = _STRICT

    n_epochs: Annotated[float, Field(gt=0, le=1000)] | Literal["auto"] = "auto"
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"


class JobBody(BaseModel):
    """Body of POST /v1/fine_tuning/jobs."""

    model_config = _STRICT

    model: str
    training_file: str
    hyperparameters: Hyperparameters = Hyperparameters()
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    metadata: dict[str, str] | None = None


_BASE_RATE = 0.0005  # FineTune's default with LoRA, which learning_rate_multiplier multiplies


class FineTuning:
    """The endpoints."""

    def __init__(
        self, channels: Callable[[str], grpc.aio.Channel], files: Files, config: GatewayConfig
    ) -> None:
        """Call over the channels of storage and optimizer."""
        self._channels, self._files, self._config = channels, files, config

    def routes(self) -> list[Route]:
        """Return the routes."""
        jobs = "/v1/fine_tuning/jobs"
        return [
            Route(jobs, self.create, methods=["POST"]),
            Route(jobs, self.list_all, methods=["GET"]),
            Route(jobs + "/{id}", self.show, methods=["GET"]),
            Route(jobs + "/{id}/events", self.events, methods=["GET"]),
            *(
                Route(f"{jobs}/{{id}}/{verb}", self.steer(method), methods=["POST"])
                for verb, method in (
                    ("cancel", "CancelJob"),
                    ("pause", "PauseJob"),
                    ("resume", "ResumeJob"),
                )
            ),
        ]

    async def create(self, request: Request) -> Response:
        """Submit a job that trains low-rank additions and merges them into a new version."""
        raw = await body.read(request, self._config.max_body_bytes, self._config.body_timeout_s)
        asked, who = validated(JobBody, raw), metadata_of(request)
        _, content = await self._files.read(asked.training_file, who)
        rows = await asyncio.to_thread(rows_of, content)
        dataset = await self._dataset(rows, asked.training_file, who)
        how = asked.hyperparameters
        training = train_pb2.Training(seed=asked.seed or 0)
        if how.n_epochs != "auto":
            training.epochs = how.n_epochs
        if how.batch_size != "auto":
            training.batch = how.batch_size
        if how.learning_rate_multiplier != "auto":
            training.learning_rate = _BASE_RATE * how.learning_rate_multiplier
        name = asked.model.partition("@")[0] + (f"-{asked.suffix}" if asked.suffix else "-tuned")
        spec = jobs_pb2.JobSpec(
            fine_tune=train_pb2.FineTune(
                model=asked.model,
                data=train_pb2.TrainingData(dataset=dataset),
                lora=train_pb2.Lora(merge=True),
                name=name,
                training=training,
            )
        )
        reply = await self._jobs("SubmitJob", jobs_pb2.SubmitJobRequest(spec=spec), who)
        return JSONResponse(_shown(reply.job))

    async def list_all(self, request: Request) -> Response:
        """List the jobs, newest first."""
        data = [_shown(job) for job in await self._all(metadata_of(request))]
        return JSONResponse({"object": "list", "data": data, "has_more": False})

    async def show(self, request: Request) -> Response:
        """Show a job."""
        return JSONResponse(_shown(await self._one(request)))

    async def events(self, request: Request) -> Response:
        """Say what a job is doing, as an event."""
        job = await self._one(request)
        event = {
            "id": f"{job.id}-{job.training.step}",
            "object": "fine_tuning.job.event",
            "created_at": int(job.ended_unix_s or job.submitted_unix_s),
            "level": "error" if job.error else "info",
            "message": job.error or job.stage,
            "type": "metrics" if job.HasField("training") else "message",
            "data": {"step": job.training.step, "train_loss": job.training.loss},
        }
        return JSONResponse({"object": "list", "data": [event], "has_more": False})

    def steer(self, method: str) -> Callable[[Request], Any]:
        """Return the endpoint that cancels, pauses or resumes."""

        async def endpoint(request: Request) -> Response:
            await body.read(request, self._config.max_body_bytes, self._config.body_timeout_s)
            job = await self._one(request)
            message = getattr(jobs_pb2, f"{method}Request")(id=job.id)
            # It returns when the job's process has ended, or is about to pause.
            limit = self._config.request_timeout_s
            reply = await self._jobs(method, message, metadata_of(request), limit)
            return JSONResponse(_shown(reply.job))

        return endpoint

    async def _one(self, request: Request) -> jobs_pb2.Job:
        id = request.path_params["id"]
        for job in await self._all(metadata_of(request)):
            if job.id == id:
                return job
        raise NotFound("NO_SUCH_JOB", f"There is no fine-tuning job {id[:64]!r}.")

    async def _all(self, who: Metadata) -> list[jobs_pb2.Job]:
        reply = await self._jobs("ListJobs", jobs_pb2.ListJobsRequest(), who)
        return [job for job in reply.jobs if job.spec.WhichOneof("kind") == "fine_tune"]

    async def _jobs(
        self, method: str, request: Any, who: Metadata, timeout_s: float = _TIMEOUT_S
    ) -> Any:
        stub = jobs_pb2_grpc.JobsStub(self._channels("optimizer"))
        try:
            return await getattr(stub, method)(request, timeout=timeout_s, metadata=who)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from None

    async def _dataset(self, rows: bytes, file: str, who: Metadata) -> str:
        """Bring the rows into storage; return the data set's `name@version`."""
        channel = self._channels("storage")
        uploads = uploads_pb2_grpc.UploadsStub(channel)
        sha256 = hashlib.sha256(rows).hexdigest()
        begin = uploads_pb2.CreateUploadRequest(sha256=sha256, size=len(rows))
        try:
            made = await uploads.CreateUpload(begin, timeout=_TIMEOUT_S, metadata=who)
            if not made.existed:
                id = made.upload.id
                parts = _parts(rows, id, made.upload.offset)
                await uploads.AppendUpload(parts, timeout=_IMPORT_S, metadata=who)
                commit = uploads_pb2.CommitUploadRequest(id=id)
                await uploads.CommitUpload(commit, timeout=_TIMEOUT_S, metadata=who)
            read = data_pb2.ReadOptions(format=data_pb2.DATA_FORMAT_JSONL, text_column="text")
            wanted = data_pb2.ImportDatasetRequest(
                source=f"blob:{sha256}", name=f"openai-{file[:40]}", read=read
            )
            stub = data_pb2_grpc.DatasetsStub(channel)
            async for reply in stub.ImportDataset(wanted, timeout=_IMPORT_S, metadata=who):
                if reply.HasField("dataset"):
                    return f"{reply.dataset.name}@{reply.dataset.version}"
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from None
        raise Internal("NO_DATASET", "Storage ended the import without a data set; try again.")


async def _parts(
    rows: bytes, id: str, offset: int
) -> AsyncIterator[uploads_pb2.AppendUploadRequest]:
    for at in range(offset, len(rows), _PART):
        part = rows[at : at + _PART]
        yield uploads_pb2.AppendUploadRequest(id=id, offset=at, data=part)


def rows_of(content: bytes) -> bytes:
    """Return a training file as rows of `text`. Raises InvalidArgument BAD_TRAINING_FILE."""
    rows: list[bytes] = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            text = _text(json.loads(line))
            text.encode()  # JSON can write halves of characters, which no tokenizer knows
            rows.append(json.dumps({"text": text}).encode())
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InvalidArgument(
                "BAD_TRAINING_FILE",
                f"Line {number} of the training file is no JSON object with `text`, with `prompt` "
                "and `completion`, or with `messages`, in Unicode.",
            ) from None
    if not rows:
        raise InvalidArgument("BAD_TRAINING_FILE", "The training file has no rows.")
    return b"\n".join(rows) + b"\n"


def _text(row: Any) -> str:
    if "messages" in row:
        turns = [(str(m["role"]), str(m["content"])) for m in row["messages"]]
        return "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)
    if "prompt" in row:
        return str(row["prompt"]) + str(row["completion"])
    return str(row["text"])


def _shown(job: jobs_pb2.Job) -> Json:
    training = job.spec.fine_tune.training
    result = next(iter(reversed(job.results)), None)
    failed = job.state == jobs_pb2.JOB_STATE_FAILED
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.submitted_unix_s),
        "finished_at": int(job.ended_unix_s) or None,
        "model": job.spec.fine_tune.model,
        "fine_tuned_model": result,
        "status": _STATES.get(job.state, "queued"),
        "error": {"code": "job_failed", "message": job.error, "param": None} if failed else None,
        "hyperparameters": {
            "n_epochs": training.epochs or "auto",
            "batch_size": training.batch or "auto",
            "learning_rate_multiplier": training.learning_rate / _BASE_RATE or "auto",
        },
        "organization_id": "llmos",
        "result_files": [],
        "seed": training.seed,
        "trained_tokens": None,
        "training_file": job.spec.fine_tune.data.dataset.removeprefix("openai-").partition("@")[0],
        "validation_file": None,
        "estimated_finish": None,
    }
