"""The operations of the published document: one line each, but for those of `admin_calls`."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel

from llmos.servers.gateway.batches import BatchBody
from llmos.servers.gateway.files import PURPOSES
from llmos.servers.gateway.finetuning import JobBody
from llmos.servers.gateway.oip_infer import InferBody
from llmos.servers.gateway.openapi_answers import NUMBER, TEXT, WHOLE
from llmos.servers.gateway.schema import ChatBody, CompletionBody, EmbeddingBody
from llmos.servers.gateway.transcriptions import FORMATS

Json = dict[str, Any]


class Form(NamedTuple):
    """A multipart body: its members, which of them must be there."""

    members: Json
    required: tuple[str, ...]


class Operation(NamedTuple):
    """One operation."""

    method: str
    path: str
    about: str
    answer: str = ""
    """A schema of `openapi_answers`, a media type, or empty for an answer without a body."""
    body: type[BaseModel] | Form | Json | None = None
    query: tuple[str, ...] = ()
    example: Json | None = None
    """A body."""
    streams: bool = False
    """Whether it can answer by server-sent events, too."""


_SAID: Json = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is an operating system?"}],
    "max_tokens": 16,
}
_PROMPT: Json = {"model": "smollm2", "prompt": ["Once upon a time", "The sea"], "max_tokens": 8}
_INPUT: Json = {"model": "minilm", "input": ["a text", "another"], "encoding_format": "float"}
_TENSORS: Json = {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a text"]}]
}
_BATCH: Json = {"input_file_id": "file-0", "endpoint": "/v1/chat/completions"}
_TRAINING: Json = {
    "model": "smollm2",
    "training_file": "file-0",
    "hyperparameters": {"n_epochs": 1},
    "suffix": "verses",
}
_FILE: Json = {"type": "string", "format": "binary"}
_UPLOAD = Form(
    {"file": _FILE, "purpose": {"type": "string", "enum": PURPOSES}}, ("file", "purpose")
)
_SOUND = Form(
    {
        "file": _FILE,
        "model": TEXT,
        "response_format": {"type": "string", "enum": FORMATS},
        "temperature": NUMBER,
    },
    ("file", "model"),
)
_INDEX: Json = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
_REGION: Json = {
    "type": "object",
    "required": ["key", "byte_size"],
    "properties": {"key": TEXT, "offset": {**WHOLE, "minimum": 0}, "byte_size": WHOLE},
}
_JOBS, _MODELS, _REGIONS = "/v1/fine_tuning/jobs", "/v2/models/{name}", "/v2/systemsharedmemory"
_BYTES, _PLAIN = "application/octet-stream", "text/plain"


def _of_models(path: str, one: str) -> tuple[Operation, ...]:
    return (
        Operation("get", path, f"List the tensors of {one}", "ModelMetadata"),
        Operation("get", path + "/ready", f"Say by the status whether {one} is loaded"),
        Operation("get", path + "/config", f"Tell how {one} is run", "ModelConfig"),
        Operation("get", path + "/stats", f"Tell what {one} has done", "ModelStats"),
        Operation(
            "post",
            path + "/infer",
            f"Run {one} on tensors",
            "Inference",
            InferBody,
            example=_TENSORS,
        ),
    )


OPERATIONS: tuple[Operation, ...] = (
    Operation("get", "/v1/models", "List the models", "ModelList"),
    Operation("get", "/v1/models/{id}", "Show a model", "Model"),
    Operation(
        "post",
        "/v1/chat/completions",
        "Answer a chat",
        "ChatCompletion",
        ChatBody,
        example=_SAID,
        streams=True,
    ),
    Operation(
        "post",
        "/v1/completions",
        "Continue prompts",
        "Completion",
        CompletionBody,
        example=_PROMPT,
        streams=True,
    ),
    Operation(
        "post",
        "/v1/embeddings",
        "Turn texts into vectors",
        "Embeddings",
        EmbeddingBody,
        example=_INPUT,
    ),
    Operation("post", "/v1/audio/transcriptions", "Write down a sound", "Transcription", _SOUND),
    Operation("post", "/v1/files", "Keep a file", "File", _UPLOAD),
    Operation("get", "/v1/files", "List the files, newest first", "FileList", query=("purpose",)),
    Operation("get", "/v1/files/{id}", "Show a file's object", "File"),
    Operation("delete", "/v1/files/{id}", "Delete a file", "Deleted"),
    Operation("get", "/v1/files/{id}/content", "Return a file's bytes", _BYTES),
    Operation(
        "post", "/v1/batches", "Answer the requests in a file", "Batch", BatchBody, example=_BATCH
    ),
    Operation("get", "/v1/batches", "List the batches, newest first", "BatchList"),
    Operation("get", "/v1/batches/{id}", "Show a batch", "Batch"),
    Operation("post", "/v1/batches/{id}/cancel", "Stop a batch; what is answered stays", "Batch"),
    Operation(
        "post", _JOBS, "Train a model on a file with LoRA", "Job", JobBody, example=_TRAINING
    ),
    Operation("get", _JOBS, "List the jobs, newest first", "JobList"),
    Operation("get", _JOBS + "/{id}", "Show a job", "Job"),
    Operation("get", _JOBS + "/{id}/events", "Say what a job is doing", "JobEventList"),
    Operation("post", _JOBS + "/{id}/cancel", "Cancel a job", "Job"),
    Operation("post", _JOBS + "/{id}/pause", "Pause a job", "Job"),
    Operation("post", _JOBS + "/{id}/resume", "Resume a job", "Job"),
    Operation("get", "/v2", "Say what this is", "ServerMetadata"),
    Operation("get", "/v2/health/live", "Say that the process is alive"),
    Operation("get", "/v2/health/ready", "Say by the status whether models can be asked"),
    *_of_models(_MODELS, "a model"),
    *_of_models(_MODELS + "/versions/{version}", "a version of a model"),
    Operation("get", "/v2/models/stats", "Tell what all models have done", "ModelStats"),
    Operation("post", "/v2/repository/index", "List the models", "RepositoryIndex", _INDEX),
    Operation("post", "/v2/repository/models/{name}/load", "Load a model"),
    Operation("post", "/v2/repository/models/{name}/unload", "End a model's worker"),
    Operation("get", _REGIONS + "/status", "List the regions of shared memory", "Regions"),
    Operation("get", _REGIONS + "/region/{name}/status", "Show a region", "Regions"),
    Operation("post", _REGIONS + "/region/{name}/register", "Register a region", body=_REGION),
    Operation("post", _REGIONS + "/region/{name}/unregister", "Forget a region"),
    Operation("post", _REGIONS + "/unregister", "Forget all regions"),
    Operation("get", "/v2/cudasharedmemory/status", "List regions of GPU memory: none", "Regions"),
    Operation("post", "/v2/cudasharedmemory/unregister", "Forget all of them"),
    Operation("get", "/llmos/v1", "List the endpoints of the OS", "Endpoints"),
    Operation("get", "/llmos/v1/system", "Show the OS in one picture", "System"),
    Operation("get", "/", "Say what this is; browsers go on to the console", "About"),
    Operation("get", "/openapi.json", "This document", "application/json"),
    Operation("get", "/healthz", "Say that the process is alive", "Status"),
    Operation("get", "/readyz", "Say whether requests can be answered", "Status"),
    Operation("get", "/metrics", "All metrics, in Prometheus' text format", _PLAIN),
)
