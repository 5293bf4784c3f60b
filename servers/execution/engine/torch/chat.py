"""Renders a chat by the model's own template, which is foreign code: it runs in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmos.lib.errors import InvalidArgument
from llmos.servers.execution.engine.base import ChatTurn

_ROLES = ("system", "user", "assistant")


class ChatTemplate:
    """A model's chat template, if it has one."""

    def __init__(self, source: object, *, bos: str, eos: str) -> None:
        """Compile `source`. None, no text, or wrong syntax: the model cannot chat."""
        self._names = {"bos_token": bos, "eos_token": eos}
        self._template: jinja2.Template | None = None
        self._why = "it has no chat template"
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

    def render(self, turns: Sequence[ChatTurn]) -> str:
        """Return the text up to where the assistant begins to speak.

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
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, **self._names
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise _bad(f"the model's template refuses it ({error})") from error


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    # Unlike jinja's own, which escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _bad(why: str) -> InvalidArgument:
    return InvalidArgument("BAD_CHAT", f"This chat cannot be answered: {why}.")
