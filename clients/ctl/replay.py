"""`llmos-ctl kernel replay`: what a recorded kernel did, done again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from llmos.clients.ctl.session import Session, command
from llmos.lib.errors import DataLoss, InvalidArgument

_WIDTHS = "{:>12} {:<18} {:>8} {:>9}  {:<8} {}"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, examples=["llmos-kernel --record run.rec", "llmos-ctl kernel replay run.rec"])
    def replay(
        session: Session,
        file: Annotated[Path, typer.Argument(help="What `llmos-kernel --record` wrote.")],
        differences: Annotated[
            bool, typer.Option("--differences", help="Print only what came out differently.")
        ] = False,
    ) -> None:
        """Replay a recording and tell whether the kernel's core does the same again.

        Exits with an error when it does not. JSON: one line per event, then the summary.
        """
        show(session, file, differences)


def show(session: Session, file: Path, differences: bool) -> None:
    """Print the events of a replay and its summary. Raises DataLoss REPLAY_DIFFERS."""
    summary: dict[str, Any] = {}
    if not session.json:
        print(_WIDTHS.format("SECONDS", "EVENT", "OF", "ENVELOPES", "", "SENT (PORT:ENVELOPES)"))
    for line in _lines(file):
        entry = json.loads(line)
        if "events" in entry:
            summary = entry
        elif differences and entry["same"]:
            continue
        if session.json:
            print(line)
        elif "events" not in entry:
            sent = " ".join(f"{port}:{count}" for port, count in entry["sent"].items())
            print(
                _WIDTHS.format(
                    f"{entry['t']:.6f}",
                    entry["event"],
                    entry["subject"] or "",
                    entry["envelopes"] or "",
                    "" if entry["same"] else "DIFFERS",
                    sent,
                ).rstrip()
            )
    different = summary["different"]
    if not session.json:
        outcome = f"{different} came out differently" if different else "all the same"
        print(f"{summary['events']} events, {outcome} (recorded by llmos {summary['version']}).")
    if different:
        raise DataLoss(
            "REPLAY_DIFFERS",
            f"{different} of {summary['events']} events of {file} came out differently: the file "
            "is of another version of the kernel, or the kernel's core is not deterministic.",
        )


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of `llmos-kernel --replay`, a process: clients do not import the kernel."""
    import subprocess
    import tempfile

    command = [sys.executable, "-m", "llmos.kernel", "--replay", str(file)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            yield line.rstrip("\n")
        process.wait()
        errors.seek(0)
        said = errors.read().strip()
    if process.returncode:
        cause = said.splitlines()[-1] if said else f"it exited with {process.returncode}"
        raise InvalidArgument("BAD_RECORDING", cause.removeprefix("llmos-kernel: "))
