"""Requests of execution.proto as what engines take, checked; and back."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.lib.errors import InvalidArgument, ResourceExhausted
from llmos.servers.execution.engine.base import (
    NORMAL,
    ChatTurn,
    Embeddings,
    Generation,
    Piece,
    TokenLogprob,
)

MAX_TEXTS = 2048
MAX_STOPS = 16
_ROLES = ("system", "user", "assistant", "tool")
_FINISH = {
    "": pb.FINISH_REASON_UNSPECIFIED,
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
}


def generation(
    request: pb.GenerateRequest,
    seed: int | None,
    resume: Sequence[int] = (),
    *,
    rank: int = NORMAL,
    tenant: str = "",
    adapter: str = "",
) -> Generation:
    """Return what to generate; `seed` and `resume` are an earlier worker's, when there was one.

    rank and tenant are the call's; adapter: `name@version` of one that the engine has. Raises
    InvalidArgument EMPTY_PROMPT, BAD_SAMPLING, BAD_CHAT.
    """
    sampling = request.sampling
    if seed is None:
        seed = sampling.seed if sampling.HasField("seed") else secrets.randbits(32)
    temperature = sampling.temperature if sampling.HasField("temperature") else 0.7
    top_p = sampling.top_p if sampling.HasField("top_p") else 1.0
    if not 0 <= temperature <= 2:  # also false for NaN
        raise _bad("temperature", f"temperature is {temperature:g}; it must be 0 to 2.")
    if not 0 < top_p <= 1:
        raise _bad("top_p", f"top_p is {top_p:g}; it must be over 0 and up to 1.")
    if len(request.stop) > MAX_STOPS:
        raise _bad("stop", f"{len(request.stop)} stop texts; at most {MAX_STOPS} are possible.")
    if "" in request.stop:
        raise _bad("stop", "A stop text is empty; leave it out.")
    kind, limits = request.WhichOneof("input"), request.WhichOneof("constraint")
    empty = {
        "prompt": not request.prompt,
        "tokens": not request.tokens.ids,
        "chat": not any(m.content or m.tool_calls for m in request.chat.messages),
        None: True,
    }
    if empty[kind]:
        raise InvalidArgument(
            "EMPTY_PROMPT", "There is nothing to continue; give a prompt, a chat or tokens."
        )
    return Generation(
        prompt=request.prompt if kind == "prompt" else None,
        chat=_chat(request.chat) if kind == "chat" else None,
        tokens=list(request.tokens.ids) if kind == "tokens" else None,
        max_tokens=request.max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=sampling.top_k,
        seed=seed,
        stop=list(request.stop),
        resume=list(resume),
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty
        if sampling.HasField("repetition_penalty")
        else 1.0,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
        logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
        json_schema=request.json_schema if limits == "json_schema" else None,
        regex=request.regex if limits == "regex" else None,
        grammar=request.grammar if limits == "grammar" else None,
        tools=[_object("tool", text) for text in request.chat.tools] if kind == "chat" else (),
        prompt_logprobs=request.prompt_logprobs,
        speculate=request.speculate,
        rank=rank,
        adapter=adapter,
        tenant=tenant,
    )


def _bad(parameter: str, message: str) -> InvalidArgument:
    return InvalidArgument("BAD_SAMPLING", message, details={"param": parameter})


def _chat(chat: pb.Chat) -> list[ChatTurn]:
    for message in chat.messages:
        if message.role not in _ROLES:
            raise InvalidArgument(
                "BAD_CHAT", f"{message.role[:40]!r} is not a role; use {', '.join(_ROLES)}."
            )
    if chat.messages[-1].role == "assistant":
        raise InvalidArgument("BAD_CHAT", "The last message is the assistant's; add a user's.")
    return [
        ChatTurn(m.role, m.content, tuple(_object("tool call", text) for text in m.tool_calls))
        for m in chat.messages
    ]


def _object(what: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise InvalidArgument("BAD_CHAT", f"A {what} is not a JSON object with a `name`.")
    return value


def response(
    piece: Piece, ref: str, seed: int, first: bool, spell: Callable[[int], str] = str
) -> pb.GenerateResponse:
    """Return a piece as the wire's; `spell` gives a token's text."""
    message = pb.GenerateResponse(
        text=piece.text, token_ids=piece.tokens, finish_reason=_FINISH[piece.finish]
    )
    message.logprobs.extend(_logprob(one, spell) for one in piece.logprobs)
    message.prompt_logprobs.extend(_logprob(one, spell) for one in piece.prompt_logprobs)
    if first or piece.finish:
        message.model = ref
        message.seed = seed
    if piece.finish:
        message.usage.prompt_tokens = piece.prompt_tokens
        message.usage.completion_tokens = piece.completion_tokens
        message.usage.cached_tokens = piece.cached_tokens
        message.usage.guessed_tokens = piece.guessed_tokens
        message.usage.accepted_tokens = piece.accepted_tokens
        message.usage.first_token_s = _finite(piece.first_token_s)
        message.usage.decode_s = _finite(piece.decode_s)
    return message


def _logprob(one: TokenLogprob, spell: Callable[[int], str]) -> pb.TokenLogprob:
    chances = (pb.TokenChance(token=t, logprob=p, text=spell(t)) for t, p in one.top)
    return pb.TokenLogprob(token=one.token, logprob=one.logprob, top=chances, text=spell(one.token))


def texts(request: pb.EmbedRequest) -> list[str]:
    """Return the texts to embed.

    Raises InvalidArgument EMPTY_INPUT; ResourceExhausted TOO_MANY_INPUTS.
    """
    if not request.texts:
        raise InvalidArgument("EMPTY_INPUT", "There are no texts to embed; give at least one.")
    if len(request.texts) > MAX_TEXTS:
        raise ResourceExhausted(
            "TOO_MANY_INPUTS",
            f"{len(request.texts)} texts in one call; split them into calls of {MAX_TEXTS}.",
        )
    return list(request.texts)


def embeddings(result: Embeddings, ref: str) -> pb.EmbedResponse:
    """Return vectors as the wire's."""
    return pb.EmbedResponse(
        embeddings=[pb.Embedding(values=row) for row in result.vectors.tolist()],
        prompt_tokens=result.prompt_tokens,
        model=ref,
        truncated=result.truncated,
    )


def _finite(seconds: float) -> float:
    return seconds if math.isfinite(seconds) else 0.0
