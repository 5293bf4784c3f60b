"""The protocol's settings of logs, as the levels that this server writes."""

from __future__ import annotations

from typing import Any

from llmos.api.inference import open_inference_pb2 as pb
from llmos.lib import log as logs
from llmos.lib.errors import InvalidArgument, Unimplemented

_FLAGS = {"log_error": "error", "log_warning": "warning", "log_info": "info"}
_VERBOSE, _FORMAT, _FILE = "log_verbose_level", "log_format", "log_file"
_ISO = "ISO8601"


def changed(request: pb.LogSettingsRequest) -> str:
    """Return what is to be logged after a request, as lib.log reads it; changes nothing.

    Raises InvalidArgument BAD_SETTING, Unimplemented FIXED_SETTING.
    """
    chosen = set(logs.levels(logs.shown()))
    for name, setting in sorted(request.settings.items()):
        kind = setting.WhichOneof("parameter_choice")
        value: Any = getattr(setting, kind) if kind else None
        if name in _FLAGS:
            if kind != "bool_param":
                raise _bad(name, value, "true or false")
            _choose(chosen, _FLAGS[name], value)
        elif name == _VERBOSE:
            if kind != "uint32_param":
                raise _bad(name, value, "a number, 0 = none")
            _choose(chosen, "debug", value > 0)
        elif name == _FORMAT:
            if kind != "string_param" or value != _ISO:
                raise _bad(name, value, f"{_ISO}, the only one: JSON lines with such times")
        elif name == _FILE:
            raise Unimplemented(
                "FIXED_SETTING",
                "log_file does not change while the server runs: every process writes to its own "
                "file under `logs` in the state directory; `llmos-ctl logs` shows them.",
            )
        else:
            known = ", ".join([*_FLAGS, _VERBOSE, _FORMAT])
            raise InvalidArgument(
                "BAD_SETTING", f"There is no setting {name[:60]!r} of logs; {known} are."
            )
    return logs.text_of(chosen)


def described() -> pb.LogSettingsResponse:
    """Return all settings as they are."""
    chosen = logs.levels(logs.shown())
    answer = pb.LogSettingsResponse()
    for name, level in _FLAGS.items():
        answer.settings[name].bool_param = level in chosen
    answer.settings[_VERBOSE].uint32_param = int("debug" in chosen)
    answer.settings[_FORMAT].string_param = _ISO
    answer.settings[_FILE].string_param = ""
    return answer


def _choose(chosen: set[str], level: str, wanted: bool) -> None:
    if wanted:
        chosen.add(level)
    else:
        chosen.discard(level)


def _bad(name: str, value: Any, wanted: str) -> InvalidArgument:
    return InvalidArgument("BAD_SETTING", f"Setting {name} is {value!r}; it is {wanted}.")
