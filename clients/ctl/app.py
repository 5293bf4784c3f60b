"""The tree of commands; one module per noun, imported when one of its commands is asked for."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import typer
import typer.core

from llmos.clients.ctl.quick import quick, quicken
from llmos.clients.ctl.session import (
    AddressOption,
    Options,
    OutputOption,
    StateDirOption,
    TimeoutOption,
)

HELP = """The command line of LLM OS, an operating system for AI models.

Start it, give it a model and ask it something:

\b
  llmos-ctl up
  llmos-ctl model import ./my-model.gguf --name my-model
  llmos-ctl run my-model "What is the capital of France?"
  llmos-ctl ps
  llmos-ctl down

-o json and -o yaml print any result for programs; --watch 2, where a command has it, shows its
result again every two seconds. `llmos-ctl doctor` says what is wrong with the machine. A command
that fails says why in one sentence and exits with a code that tells the kind of error: 2 wrong
input, 3 not found, 4 conflict, 5 not allowed, 6 out of room, 7 not possible now, 8 not reachable,
9 too late.
"""


class Entry(NamedTuple):
    """A command or a noun, as the first page of the help has it."""

    help: str
    modules: tuple[str, ...]  # of this package; the first one owns `register` or `app`


def _verb(help: str, module: str) -> Entry:
    return Entry(help, (module,))


ENTRIES: dict[str, Entry] = {
    "up": _verb("Start LLM OS in the background and wait until it is ready.", "system"),
    "down": _verb("Stop LLM OS: every process, in reverse order, init last.", "system"),
    "ps": _verb("Show the processes: pid, state, restarts, memory.", "system"),
    "logs": _verb("Show the log of a process.", "system"),
    "restart": _verb("Restart processes gracefully, one after the other.", "system"),
    "run": _verb("Ask a model and print the answer as it comes.", "run"),
    "chat": _verb("Talk with a model.", "chat"),
    "embed": _verb("Turn texts into vectors.", "embed"),
    "classify": _verb("Say what texts, images or sounds are.", "classify"),
    "demo": _verb("Boot, let a model answer, show what runs, stop.", "demo"),
    "top": _verb("Watch servers, models, memory, queues and jobs.", "dashboard"),
    "doctor": _verb("Check the machine, and say what to do.", "doctor"),
    "trace": _verb("Show where the time of a call went.", "trace"),
    "bench": _verb("Measure the kernel's round trip and a model's answers.", "bench"),
    "init": _verb("Make a new server of your own in Python.", "init"),
    "model": Entry(
        "Import, list, show, remove, load and unload models.",
        (
            "model",
            "model_about",
            "model_alias",
            "model_load",
            "model_memory",
            "model_places",
            "model_sign",
            "model_swap",
        ),
    ),
    "dataset": Entry(
        "Import, clean, split, look at, export and delete data sets.",
        ("dataset", "dataset_budget", "dataset_rows"),
    ),
    "job": Entry(
        "Make new model versions out of old ones.",
        ("job", "job_control", "job_optimize", "job_train"),
    ),
    "mem": Entry("What holds memory: devices, models, buffers, prefixes, sessions.", ("mem",)),
    "kernel": Entry("Look into the kernel and steer it.", ("kernel",)),
    "key": Entry("API keys of the gateway.", ("key",)),
    "state": Entry("Small documents with a history.", ("state",)),
    "lock": Entry("Locks, first come, first served, with fencing tokens.", ("lock",)),
    "audit": Entry("The log of all changes in storage: list, export, verify.", ("audit",)),
    "storage": Entry("Space, checks, collection, backups, quotas and keys.", ("storage",)),
}


class Lazy(typer.core.TyperGroup):
    """The commands of ENTRIES; of them only what is asked for is imported."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the common options."""
        return quick(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return their names, in the table's order."""
        return list(ENTRIES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command of the table, built when it is first asked for; None: no such."""
        if cmd_name in ENTRIES and cmd_name not in self.commands:
            self.commands[cmd_name] = _built(cmd_name)
            quicken(self.commands[cmd_name], ctx)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table, for which nothing has to be imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in ENTRIES.items()])


def _built(name: str) -> Any:
    """Import what a command or noun needs, and return it as typer's object."""
    owner, *_ = (
        importlib.import_module(f"llmos.clients.ctl.{module}") for module in ENTRIES[name].modules
    )
    holder = typer.Typer(rich_markup_mode=None)
    if hasattr(owner, "register"):
        owner.register(holder)
    else:
        holder.add_typer(owner.app, name=name)
    return typer.main.get_group(holder).commands[name]


def build() -> typer.Typer:
    """Return the application."""
    app = typer.Typer(
        cls=Lazy,
        help=HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def common(
        ctx: typer.Context,
        address: AddressOption = None,
        state_dir: StateDirOption = None,
        timeout: TimeoutOption = None,
        output: OutputOption = None,
    ) -> None:
        ctx.obj = Options(address, state_dir, timeout, output)

    return app
