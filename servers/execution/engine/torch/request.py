"""Checks a request and turns it into a plan: prompt ids, limits, sampler."""

from __future__ import annotations

import math

from llmos.lib.errors import InvalidArgument, OutOfRange
from llmos.servers.execution.engine.base import Generation
from llmos.servers.execution.engine.torch.chat import ChatTemplate
from llmos.servers.execution.engine.torch.options import MAX_SPECULATE
from llmos.servers.execution.engine.torch.sampling import Sampler
from llmos.servers.execution.engine.torch.sequence import Plan
from llmos.servers.execution.engine.torch.tokenizer import TextTokenizer

MAX_STOPS = 16
MAX_LOGPROBS = 20
DEFAULT_TOKENS = 256
_SHORT = 512  # characters or tokens, which are cut or checked in less than half a millisecond


def make_plan(
    request: Generation, tokenizer: TextTokenizer, chat: ChatTemplate, context: int, vocab: int
) -> Plan:
    """Return the checked request.

    Raises InvalidArgument EMPTY_PROMPT, BAD_SAMPLING, BAD_CHAT, BAD_TOKENS, BAD_CONSTRAINT;
    OutOfRange CONTEXT_OVERFLOW.
    """
    sampler = _sampler(request, vocab)
    prompt = _prompt(request, tokenizer, chat)
    for token in (*prompt, *request.resume):
        if not 0 <= token < vocab:
            raise InvalidArgument(
                "BAD_TOKENS", f"Token id {token} is not one of the model's, 0 to {vocab - 1}."
            )
    room = context - len(prompt)
    wanted = request.max_tokens or max(1, min(DEFAULT_TOKENS, room))
    if wanted > room:
        raise OutOfRange(
            "CONTEXT_OVERFLOW",
            f"The prompt has {len(prompt)} tokens and {wanted} more are to be generated, but the "
            f"model's context holds {context} in all; shorten the prompt or lower max_tokens.",
        )
    return Plan(
        prompt,
        wanted,
        sampler,
        request.resume,
        request.speculate,
        request.rank,
        request.tenant,
        request.prompt_logprobs,
    )


def is_short(request: Generation) -> bool:
    """Say whether a plan takes well under a millisecond, so that an event loop may wait for it.

    Chats are not (a model's template is foreign code), nor what has to match something.
    """
    text = request.prompt is not None and len(request.prompt) <= _SHORT
    given = request.tokens is not None and len(request.tokens) <= _SHORT
    return (text or given) and len(request.resume) <= _SHORT and constraint(request) is None


def constraint(request: Generation) -> tuple[str, str] | None:
    """Return the kind and the source of what the text has to match, if anything.

    Raises InvalidArgument BAD_CONSTRAINT when there are several.
    """
    given = {
        "json_schema": request.json_schema,
        "regex": request.regex,
        "grammar": request.grammar,
    }
    found = [(kind, source) for kind, source in given.items() if source is not None]
    if len(found) > 1:
        raise InvalidArgument(
            "BAD_CONSTRAINT", "Give one of json_schema, regex and grammar, not several."
        )
    return found[0] if found else None


def _prompt(request: Generation, tokenizer: TextTokenizer, chat: ChatTemplate) -> list[int]:
    given = [x for x in (request.prompt, request.chat, request.tokens) if x is not None]
    if len(given) != 1 or not given[0]:
        raise InvalidArgument(
            "EMPTY_PROMPT", "There is nothing to continue: give one of prompt, chat and tokens."
        )
    if request.tokens is not None:
        return list(request.tokens)
    if request.prompt is not None:
        ids = tokenizer.encode(request.prompt)
    else:
        assert request.chat is not None
        ids = tokenizer.encode(chat.render(request.chat, request.tools), rendered=True)
    if not ids:
        raise InvalidArgument("EMPTY_PROMPT", "The prompt has no tokens; give some text.")
    return ids


def _sampler(request: Generation, vocab: int) -> Sampler:
    # Comparisons are written so that NaN fails them.
    if not 0 <= request.temperature <= 2:
        raise _bad("temperature", request.temperature, "0 (greedy) to 2")
    if not 0 < request.top_p <= 1:
        raise _bad("top_p", request.top_p, "over 0 to 1")
    if request.top_k < 0:
        raise _bad("top_k", request.top_k, "0 (all) or more")
    if request.max_tokens < 0:
        raise _bad("max_tokens", request.max_tokens, "0 (default) or more")
    if not 0 <= request.seed < 2**64:
        raise _bad("seed", request.seed, "a whole number of 64 bits without sign")
    if len(request.stop) > MAX_STOPS:
        raise _bad("stop", f"{len(request.stop)} texts", f"at most {MAX_STOPS}")
    if "" in request.stop:
        raise _bad("stop", "an empty text", "texts of one character or more")
    if not 0 <= request.min_p <= 1:
        raise _bad("min_p", request.min_p, "0 (all) to 1")
    if not 0 < request.repetition_penalty <= 2:
        raise _bad("repetition_penalty", request.repetition_penalty, "over 0 to 2")
    for name in ("presence_penalty", "frequency_penalty"):
        if not -2 <= getattr(request, name) <= 2:
            raise _bad(name, getattr(request, name), "-2 to 2")
    for token, bias in request.logit_bias.items():
        if not 0 <= token < vocab:
            raise _bad("logit_bias", f"for token {token}", f"for tokens 0 to {vocab - 1}")
        if not -100 <= bias <= 100:
            raise _bad("logit_bias", bias, "-100 to 100")
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_LOGPROBS:
        raise _bad("logprobs", request.logprobs, f"0 to {MAX_LOGPROBS}")
    if not 0 <= request.speculate <= MAX_SPECULATE:
        raise _bad("speculate", request.speculate, f"0 (not at all) to {MAX_SPECULATE}")
    return Sampler(
        request.temperature,
        request.top_p,
        request.top_k,
        request.seed,
        min_p=request.min_p,
        repetition=request.repetition_penalty,
        presence=request.presence_penalty,
        frequency=request.frequency_penalty,
        bias=dict(request.logit_bias),
        logprobs=None if request.logprobs is None else min(request.logprobs, vocab),
    )


def _bad(name: str, value: object, allowed: str) -> InvalidArgument:
    shown = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else f"{value}"
    return InvalidArgument("BAD_SAMPLING", f"{name} is {shown} but has to be {allowed}.")
