"""From bodies of the OpenAI API to requests of Execution."""

from __future__ import annotations

import json
from typing import Any

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.gateway.messages import Choice, Message, ResponseFormat
from llmos.servers.gateway.schema import ChatBody, CompletionBody, EmbeddingBody, GenerationBody

# Defaults are OpenAI's, not the worker's: a client that leaves a parameter out expects them.
DEFAULT_TEMPERATURE = 1.0
DEFAULT_COMPLETION_TOKENS = 16
_TINY_TOP_P = 1e-6
_PENALTIES = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def chat_requests(body: ChatBody) -> list[pb.GenerateRequest]:
    """Return one request per choice; without max_tokens the worker's own limit holds."""
    request = pb.GenerateRequest(
        model=body.model, max_tokens=body.max_completion_tokens or body.max_tokens or 0
    )
    for message in body.messages:
        request.chat.messages.append(_message(message))
    if body.tools and body.tool_choice != "none":
        for tool in body.tools:
            request.chat.tools.append(
                json.dumps(tool.function.model_dump(include=_TOOL, exclude_none=True))
            )
    if (schema := _forced(body)) is not None:
        request.json_schema = json.dumps(schema)
    _fill(request, body)
    _shape(request, body.response_format)
    if body.logprobs:
        request.sampling.logprobs = body.top_logprobs or 0
    return _choices(request, body)


_TOOL = {"name", "description", "parameters"}


def _message(message: Message) -> pb.ChatMessage:
    role = "system" if message.role == "developer" else message.role
    turn = pb.ChatMessage(role=role, content=message.content or "")
    for call in message.tool_calls or ():
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = call.function.arguments  # as the model wrote it, right or wrong
        turn.tool_calls.append(json.dumps({"name": call.function.name, "arguments": arguments}))
    return turn


def _forced(body: ChatBody) -> dict[str, Any] | None:
    """Return the schema of a call that must be made, if one must."""
    if isinstance(body.tool_choice, Choice):
        names = {body.tool_choice.function.name}
    elif body.tool_choice == "required":
        names = {tool.function.name for tool in body.tools or ()}
    else:
        return None
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": tool.function.parameters or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in body.tools or ()
        if tool.function.name in names
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def completion_requests(body: CompletionBody, max_prompts: int) -> list[pb.GenerateRequest]:
    """Return one request per prompt and choice. Raises InvalidArgument TOO_MANY_PROMPTS."""
    count = len(body.prompt) * (body.n or 1)
    if count > max_prompts:
        raise InvalidArgument(
            "TOO_MANY_PROMPTS",
            f"`prompt` and `n` ask for {count} texts and {max_prompts} are allowed; "
            "split the request.",
            details={"param": "prompt"},
        )
    limit = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    requests = []
    for prompt in body.prompt:
        # An echo of nothing more still needs a step; its token is left out of the answer.
        request = pb.GenerateRequest(model=body.model, max_tokens=limit or 1)
        if isinstance(prompt, str):
            request.prompt = prompt
        else:
            request.tokens.ids.extend(prompt)
        _fill(request, body)
        _shape(request, body.response_format)
        if body.logprobs is not None:
            request.sampling.logprobs = body.logprobs
        if body.echo and (body.logprobs is not None or not isinstance(prompt, str)):
            request.sampling.logprobs = body.logprobs or 0
            request.prompt_logprobs = True
        requests += _choices(request, body)
    return requests


def _choices(request: pb.GenerateRequest, body: GenerationBody) -> list[pb.GenerateRequest]:
    requests = [request]
    for i in range(1, body.n or 1):
        other = pb.GenerateRequest()
        other.CopyFrom(request)
        if request.sampling.HasField("seed"):
            other.sampling.seed = (request.sampling.seed + i) % 2**64
        requests.append(other)
    return requests


def _shape(request: pb.GenerateRequest, wanted: ResponseFormat | None) -> None:
    if wanted is None or wanted.type == "text":
        return
    schema: dict[str, Any] = {"type": "object"}
    if wanted.type == "json_schema":
        assert wanted.json_schema is not None and wanted.json_schema.json_schema is not None
        schema = wanted.json_schema.json_schema
    request.json_schema = json.dumps(schema)


def _fill(request: pb.GenerateRequest, body: GenerationBody) -> None:
    sampling = request.sampling
    sampling.temperature = DEFAULT_TEMPERATURE if body.temperature is None else body.temperature
    if body.top_p is not None:
        # OpenAI allows 0, "only the likeliest"; the OS wants it over 0, and this means the same.
        sampling.top_p = body.top_p or _TINY_TOP_P
    if body.top_k is not None:
        sampling.top_k = body.top_k
    if body.seed is not None:
        sampling.seed = body.seed % 2**64  # OpenAI's is signed
    for name in _PENALTIES:
        if (value := getattr(body, name)) is not None:
            setattr(sampling, name, value)
    for token, bias in (body.logit_bias or {}).items():
        sampling.logit_bias[int(token)] = bias
    request.stop.extend(body.stop or ())
    request.speculate = body.speculate or 0


def embed_request(body: EmbeddingBody) -> pb.EmbedRequest:
    """Return the request of embeddings."""
    return pb.EmbedRequest(model=body.model, texts=body.input)
