"""Embeddings and models as objects of the OpenAI API."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from llmos.api.execution.v1 import execution_pb2 as pb

Json = dict[str, Any]


def embeddings(reply: pb.EmbedResponse, *, as_base64: bool) -> Json:
    """Return the embeddings object; base64 is of little-endian float32, as OpenAI's."""
    data = []
    for i, embedding in enumerate(reply.embeddings):
        values: list[float] | str = list(embedding.values)
        if as_base64:
            values = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
        data.append({"object": "embedding", "index": i, "embedding": values})
    answer: Json = {
        "object": "list",
        "data": data,
        "model": reply.model,
        "usage": {"prompt_tokens": reply.prompt_tokens, "total_tokens": reply.prompt_tokens},
    }
    if reply.truncated:
        answer["llmos"] = {"truncated": list(reply.truncated)}
    return answer


def model_objects(models: Iterable[pb.Model]) -> list[Json]:
    """Return the models by id: each name, which means its default version, then other versions."""
    by_name: dict[str, list[pb.Model]] = {}
    for model in models:
        by_name.setdefault(model.name, []).append(model)
    objects = []
    for name, versions in sorted(by_name.items()):
        main = _default(versions)
        objects.append(_model_object(name, main))
        others = (v for v in versions if v is not main)
        objects.extend(_model_object(f"{name}@{v.version}", v) for v in others)
    return objects


def find_model(models: Iterable[pb.Model], ref: str) -> Json | None:
    """Return the model that `name`, `name@version` or `name@alias` means."""
    found = find(models, ref)
    return _model_object(ref, found) if found is not None else None


def find(models: Iterable[pb.Model], ref: str) -> pb.Model | None:
    """Return the version that `name`, `name@version` or `name@alias` means."""
    name, _, which = ref.partition("@")
    named = [m for m in models if m.name == name]
    if which.isdigit():
        named = [m for m in named if str(m.version) == which]
    elif which:
        # A worker that answers to the alias is what a request reaches: storage may be ahead of it.
        named = [m for m in named if ref in m.keys] or [m for m in named if which in m.aliases]
    return _default(named) if named else None


def _default(versions: Sequence[pb.Model]) -> pb.Model:
    newest = max(versions, key=lambda m: m.version)
    return next((m for m in versions if m.is_default), newest)


def _model_object(ref: str, model: pb.Model) -> Json:
    return {
        "id": ref,
        "object": "model",
        "created": int(model.created_unix_s),
        "owned_by": "llmos",
        **({"parent": model.base or None} if model.adapter else {}),
        "llmos": {
            "version": model.version,
            "state": pb.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
            "task": model.task,
            "engine": model.engine,
            "context_length": model.context_length,
            **({"reason": model.reason} if model.reason else {}),
        },
    }
