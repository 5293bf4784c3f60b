"""From bodies of the OpenAI API to requests of Execution."""

from __future__ import annotations

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.gateway.schema import ChatBody, CompletionBody, EmbeddingBody, GenerationBody

# Defaults are OpenAI's, not the worker's: a client that leaves a parameter out expects them.
DEFAULT_TEMPERATURE = 1.0
DEFAULT_COMPLETION_TOKENS = 16
_TINY_TOP_P = 1e-6


def chat_request(body: ChatBody) -> pb.GenerateRequest:
    """Return the request of a chat; without max_tokens the worker's own limit holds."""
    request = pb.GenerateRequest(
        model=body.model, max_tokens=body.max_completion_tokens or body.max_tokens or 0
    )
    for message in body.messages:
        role = "system" if message.role == "developer" else message.role
        request.chat.messages.add(role=role, content=message.content)
    _fill(request, body)
    return request


def completion_requests(body: CompletionBody, max_prompts: int) -> list[pb.GenerateRequest]:
    """Return one request per prompt. Raises InvalidArgument TOO_MANY_PROMPTS."""
    if len(body.prompt) > max_prompts:
        raise InvalidArgument(
            "TOO_MANY_PROMPTS",
            f"`prompt` has {len(body.prompt)} prompts and {max_prompts} are allowed; "
            "split the request.",
            details={"param": "prompt"},
        )
    requests = []
    for prompt in body.prompt:
        request = pb.GenerateRequest(
            model=body.model, max_tokens=body.max_tokens or DEFAULT_COMPLETION_TOKENS
        )
        if isinstance(prompt, str):
            request.prompt = prompt
        else:
            request.tokens.ids.extend(prompt)
        _fill(request, body)
        requests.append(request)
    return requests


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
    request.stop.extend(body.stop or ())


def embed_request(body: EmbeddingBody) -> pb.EmbedRequest:
    """Return the request of embeddings."""
    return pb.EmbedRequest(model=body.model, texts=body.input)
