"""`llmos-ctl top`: the whole system on one screen, with keys to steer it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl import keys
from llmos.clients.ctl.session import Session, command
from llmos.lib.errors import LLMOSError

if TYPE_CHECKING:
    from llmos.clients.ctl.dashboard_look import Look

_FIRST_S = 0.5  # between the two looks that the first rates come from
SECTIONS = ("servers", "models", "calls", "jobs")


@dataclass
class Screen:
    """What the person has chosen, and what is being asked or told."""

    section: str = "servers"
    row: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SECTIONS, 0))
    asking: tuple[str, Callable[[], str]] | None = None
    """A question and what is done on `y`, which returns what to say."""
    said: str = ""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    examples = ["llmos-ctl top", "llmos-ctl top --once -o json | jq .models"]
    command(app, examples=examples)(top)


def top(
    session: Session,
    interval: Annotated[
        float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
) -> None:
    """Watch servers, models, memory, queues and jobs. JSON: one line per look.

    Tab goes to the next table and the arrows to a row of it; r restarts the server, d drains it,
    l loads and u unloads the model, c cancels the call or the job, q ends. What hurts is asked
    first.
    """
    import json

    from llmos.clients.ctl import dashboard_look, dashboard_view

    look = dashboard_look.looker(session)
    before = look(None)  # nobody there at all is an error, not something to watch
    if not session.json and not once and sys.stdout.isatty():
        _live(session, look, before, interval)
        return
    from rich.console import Console

    wait = min(interval, _FIRST_S)
    while True:
        time.sleep(wait)
        before, wait = look(before), interval
        if session.json:
            print(json.dumps(dashboard_look.value(before), ensure_ascii=False), flush=True)
        else:
            console = Console(highlight=False)
            if not console.is_terminal:
                console = Console(highlight=False, width=160)
            console.print(dashboard_view.view(before, None, 0))
        if once:
            return


def _live(
    session: Session, look: Callable[[Look | None], Look], before: Look, interval: float
) -> None:
    import grpc
    from rich.console import Console
    from rich.live import Live

    from llmos.clients.ctl import dashboard_view
    from llmos.lib.rpc import from_exception

    console = Console(highlight=False)
    screen = Screen()
    due = time.monotonic() + min(interval, _FIRST_S)
    with (
        keys.raw() as key,
        Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        while True:
            live.update(dashboard_view.view(before, screen, console.height), refresh=True)
            try:
                pressed = key(max(0.0, due - time.monotonic()))
                if pressed == "q":
                    return
                if pressed:
                    _press(session, screen, before, pressed)
                if pressed not in ("", "y"):
                    continue  # a look after what was done, and when it is time
                before = look(before)
            except KeyboardInterrupt:  # that is how people leave, too
                return
            except (grpc.RpcError, LLMOSError) as exc:
                screen.said = f"NOT OF NOW: {from_exception(exc).message}"
            due = time.monotonic() + interval


def _press(session: Session, screen: Screen, look: Look, key: str) -> None:
    if screen.asking is not None:
        asked, screen.asking = screen.asking, None
        screen.said = asked[1]() if key == "y" else "Nothing was done."
        return
    screen.said = ""
    rows = look.rows(screen.section)
    at = min(screen.row[screen.section], max(0, len(rows) - 1))
    if key == "tab":
        screen.section = SECTIONS[(SECTIONS.index(screen.section) + 1) % len(SECTIONS)]
    elif key in ("up", "k"):
        screen.row[screen.section] = max(0, at - 1)
    elif key in ("down", "j"):
        screen.row[screen.section] = min(max(0, len(rows) - 1), at + 1)
    elif rows:
        _act(session, screen, rows[at], key)


def _act(session: Session, screen: Screen, row: Any, key: str) -> None:
    """Ask about what a key means for a row of the chosen table."""
    from llmos.clients.ctl import dashboard_acts as acts

    deed = acts.DEEDS.get((screen.section, key))
    if deed is None:
        known = ", ".join(
            f"{k} {d.verb}" for (s, k), d in acts.DEEDS.items() if s == screen.section
        )
        screen.said = f"Keys here: {known}; Tab, arrows, q."
        return
    why_not = deed.why_not(row)
    if why_not:
        screen.said = why_not
        return
    name = deed.name(row)
    screen.asking = (f"{deed.verb} {name}? y / n", lambda: deed.run(session, row))
