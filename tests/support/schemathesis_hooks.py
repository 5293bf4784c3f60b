"""Hooks of schemathesis: half of the cases are made to reach what is there, not end at a name.

What schemathesis makes up is kept otherwise; which half is a function of the case alone.
LLMOS_CASES_MODELS: the models that requests may name, by commas, by task (`generate`, `embed`).
"""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

import schemathesis

_GENERATE, _EMBED = os.environ["LLMOS_CASES_MODELS"].split(",")
_MOST = 4  # new tokens; more would test the model
_APART = ("max_completion_tokens", "session", "stream_options", "response_format", "top_logprobs")


def _lucky(value: object) -> bool:
    return zlib.crc32(repr(value).encode("utf-8", "replace")) % 2 == 0


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Let a request ask a model that is there, for what can go together."""
    path = context.operation.path
    if not isinstance(body, dict) or not path.startswith("/v1/"):
        return body
    body = dict(body)
    if "model" in body:
        body["model"] = _EMBED if path.endswith("embeddings") else _GENERATE
    if isinstance(body.get("messages"), list) and _lucky(body):
        body["messages"] = [m for m in body["messages"] if _is_text(m)][:4] or _SAID
        body["logprobs"] = bool(body.get("top_logprobs"))
        for name in (*_APART[:4], "tool_choice"):
            body.pop(name, None)
    if isinstance(body.get("prompt"), list) and _lucky(body):
        body["prompt"] = body["prompt"][:2]
    # An answer that is not bounded by the request is bounded by the worker, to 256 tokens.
    if path.endswith("completions"):
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int) and body[name] > _MOST:
                body[name] = _MOST
        if "max_completion_tokens" not in body and body.get("max_tokens") is None:
            body["max_tokens"] = _MOST
        if isinstance(body.get("n"), int):
            body["n"] = min(body["n"], 2)
    return body


_SAID = [{"role": "user", "content": "Say it again."}]


def _is_text(message: Any) -> bool:
    if not isinstance(message, dict) or message.get("content") is None:
        return False
    return "input_audio" not in (text := json.dumps(message)) and "image_url" not in text


@schemathesis.hook
def map_path_parameters(context: Any, parameters: Any) -> Any:
    """Let half of the look-ups find a model."""
    path = context.operation.path
    if isinstance(parameters, dict) and not path.endswith("load") and _lucky(parameters):
        found = {"name", "model", "ref"} & parameters.keys()
        if path.startswith(("/v2/models", "/llmos/v1/models", "/llmos/v1/versions/{ref}")):
            return {**parameters, **dict.fromkeys(found, _GENERATE)}
    return parameters
