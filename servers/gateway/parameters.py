"""Which parameters of the OpenAI API are refused by name, rather than ignored."""

from __future__ import annotations

from typing import Any

from llmos.lib.errors import InvalidArgument

# Labels and hints: they may be left out without changing the answer, so taking them is no lie.
_LABELS = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
# Parameters of the API that the OS cannot honour, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "dimensions": (),
}


def publish(schema: dict[str, Any]) -> None:
    """Say in a body's JSON schema what `check_extra` lets pass."""
    schema["additionalProperties"] = False
    for name in sorted(_LABELS):
        schema["properties"][name] = {"description": "A label; it changes nothing."}
    for name, values in sorted(_NEUTRAL.items()):
        schema["properties"][name] = {"enum": [*values, None]}


def publish_closed(schema: dict[str, Any]) -> None:
    """Say in an object's JSON schema that it has no other members."""
    schema["additionalProperties"] = False


def refused(reason: str, param: str, says: str) -> InvalidArgument:
    """Return the error that refuses `param`, with `says` completing its sentence."""
    return InvalidArgument(reason, f"`{param}` {says}.", details={"param": param})


def check_extra(prefix: str, extra: dict[str, Any] | None, *, known: bool = True) -> None:
    """Refuse members that would be ignored although they ask for something.

    known: the members may be labels or neutral values of known parameters of the API.
    """
    for name, value in (extra or {}).items():
        if value is None or (known and (name in _LABELS or _asks_nothing(name, value))):
            continue
        if known and name in _NEUTRAL:
            raise refused(
                "UNSUPPORTED_PARAMETER", name, "is not supported with this value; leave it out"
            )
        raise refused("UNKNOWN_PARAMETER", prefix + name, "is not known here; leave it out")


def _asks_nothing(name: str, value: object) -> bool:
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in _NEUTRAL.get(name, ())
    )
