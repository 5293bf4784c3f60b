"""A conversation in the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llmos.clients.ctl import run
from llmos.clients.ctl.progress import note
from llmos.clients.ctl.session import Session, command
from llmos.lib.errors import Cancelled


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, examples=["llmos-ctl chat smollm2 --system 'Answer in one line.'"])(chat)


def chat(
    session: Session,
    model: Annotated[str, typer.Argument(help="A model, `name` or `name@version`.")],
    max_tokens: run.MaxTokens = None,
    temperature: run.Temperature = None,
    top_p: run.TopP = None,
    top_k: run.TopK = None,
    seed: run.Seed = None,
    system: run.System = "",
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D ends the chat; `/new` starts it afresh."""
    settings = run.Settings(max_tokens, temperature, top_p, top_k, seed)
    opening = [("system", system)] if system else []
    turns: list[tuple[str, str]] = []
    while (said := _ask()) is not None:
        if said == "/new":
            turns.clear()
        if said in ("", "/new"):
            continue
        turns.append(("user", said))
        try:
            answer = run.stream(session, run.build(model, opening + turns, settings), show=True)
        except Cancelled:
            turns.pop()  # an answer that nobody heard to the end is not part of the talk
            note("[stopped]")
            continue
        turns.append(("assistant", answer.text))
        if run.finish(answer) == "length":
            note("[cut: --max-tokens or the context is reached]")


def _ask() -> str | None:
    """Return what the person says; None at the end of input."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        import readline  # noqa: F401  # gives input() line editing and history
    except ImportError:
        pass  # a Python built without it has plain input
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
