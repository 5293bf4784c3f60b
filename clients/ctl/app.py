"""The tree of commands; one module per noun."""

from __future__ import annotations

import typer

from llmos.clients.ctl import (
    audit,
    bench,
    chat,
    classify,
    dashboard,
    dataset,
    dataset_budget,  # noqa: F401  # more commands of dataset
    dataset_rows,  # noqa: F401  # the same
    demo,
    doctor,
    embed,
    init,
    job,
    job_control,  # noqa: F401  # more commands of job
    job_optimize,  # noqa: F401  # the same
    job_train,  # noqa: F401  # the same
    kernel,
    key,
    lock,
    mem,
    model,
    model_about,  # noqa: F401  # more commands of model
    model_alias,  # noqa: F401  # the same
    model_load,  # noqa: F401  # the same
    model_memory,  # noqa: F401  # the same
    model_places,  # noqa: F401  # the same
    model_sign,  # noqa: F401  # the same
    model_swap,  # noqa: F401  # the same
    quota,
    run,
    state,
    storage,
    system,
    trace,
)
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


def build() -> typer.Typer:
    """Return the application."""
    app = typer.Typer(
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

    system.register(app)
    run.register(app)
    chat.register(app)
    embed.register(app)
    classify.register(app)
    demo.register(app)
    dashboard.register(app)
    doctor.register(app)
    trace.register(app)
    bench.register(app)
    init.register(app)
    app.add_typer(model.app, name="model")
    app.add_typer(dataset.app, name="dataset")
    app.add_typer(job.app, name="job")
    app.add_typer(mem.app, name="mem")
    app.add_typer(kernel.app, name="kernel")
    app.add_typer(key.app, name="key")
    app.add_typer(state.app, name="state")
    app.add_typer(lock.app, name="lock")
    app.add_typer(audit.app, name="audit")
    storage.app.add_typer(quota.app, name="quota")
    app.add_typer(storage.app, name="storage")
    return app
