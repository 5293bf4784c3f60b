"""Renders a chat by the model's own template, which is foreign code: it runs in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import ChatTurn

_ROLES = ("system", "user", "assistant", "tool")
# How functions are shown to models whose template knows none: NousResearch's Hermes format, which
# many models have seen.
_SHOWN = (
    "You may call functions to help with the user's request. You are given their signatures "
    "within <tools></tools>:\n<tools>\n{tools}\n</tools>\n"
    "To call one, return a JSON object with its name and arguments within <tool_call></tool_call>:"
    '\n<tool_call>\n{{"name": <name>, "arguments": <object>}}\n</tool_call>'
)


class ChatTemplate:
    """A model's chat template, if it has one."""

    def __init__(self, source: object, *, bos: str, eos: str) -> None:
        """Compile `source`. None, no text, or wrong syntax: the model cannot chat."""
        self._names = {"bos_token": bos, "eos_token": eos}
        self._template: jinja2.Template | None = None
        self._why = "it has no chat template"
        self._shows_tools = isinstance(source, str) and "tools" in source
        if not isinstance(source, str):
            return
        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        env.filters["tojson"] = _tojson
        env.globals["raise_exception"] = _refuse
        env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = env.from_string(source)
        except jinja2.TemplateError as error:
            self._why = f"its chat template is broken ({error})"

    def render(self, turns: Sequence[ChatTurn], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Return the text up to where the assistant begins to speak; tools: functions to call.

        Raises InvalidArgument BAD_CHAT: a role that is not known, no one to answer, no template,
        or a chat that the template refuses.
        """
        for turn in turns:
            if turn.role not in _ROLES:
                raise _bad(f"the role {turn.role[:40]!r} is not one of {', '.join(_ROLES)}")
        if turns[-1].role == "assistant":
            raise _bad("its last message is the assistant's; end it with a user's")
        if self._template is None:
            raise _bad(f"the model cannot chat: {self._why}; send a plain prompt")
        names: dict[str, Any] = {**self._names, "add_generation_prompt": True}
        if self._shows_tools:
            names["messages"] = [_native(turn) for turn in turns]
            if tools:
                names["tools"] = [{"type": "function", "function": tool} for tool in tools]
        else:
            names["messages"] = _told(turns, tools)
        try:
            return self._template.render(**names)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise _bad(f"the model's template refuses it ({error})") from error


def _native(turn: ChatTurn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        message["tool_calls"] = [{"type": "function", "function": c} for c in turn.tool_calls]
    return message


def _told(turns: Sequence[ChatTurn], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return messages that say in words what the template has no place for."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        calls = "\n".join(f"<tool_call>\n{_tojson(c)}\n</tool_call>" for c in turn.tool_calls)
        text = "\n".join(part for part in (turn.content, calls) if part)
        if turn.role != "tool":
            messages.append({"role": turn.role, "content": text})
            continue
        text = f"<tool_response>\n{text}\n</tool_response>"
        if messages and messages[-1]["content"].startswith("<tool_response>"):
            messages[-1]["content"] += f"\n{text}"
        else:
            messages.append({"role": "user", "content": text})
    if tools:
        shown = _SHOWN.format(tools="\n".join(_tojson(tool) for tool in tools))
        if messages and messages[0]["role"] == "system":
            messages[0]["content"] += f"\n\n{shown}"
        else:
            messages.insert(0, {"role": "system", "content": shown})
    return messages


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    # Unlike jinja's own, which escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _bad(why: str) -> InvalidArgument:
    return InvalidArgument("BAD_CHAT", f"This chat cannot be answered: {why}.")
