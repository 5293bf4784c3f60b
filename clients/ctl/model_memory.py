"""Models in memory: pin, unpin, sleep, wake, hold, and what loading one would need."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Annotated

import typer

from llmos.clients.ctl.model import Ref, app
from llmos.clients.ctl.output import as_value, size
from llmos.clients.ctl.progress import note, status
from llmos.clients.ctl.session import Session, command


@command(app)
def pin(session: Session, ref: Ref) -> None:
    """Load a model and never evict it for others."""
    _load(session, ref, pin=True)


@command(app)
def unpin(session: Session, ref: Ref) -> None:
    """Let a model be evicted again when others want its room."""
    _load(session, ref, unpin=True)


@command(app)
def wake(session: Session, ref: Ref) -> None:
    """Bring a sleeping model back, from the page cache when its weights are still there."""
    _load(session, ref)


def _load(session: Session, ref: str, *, pin: bool = False, unpin: bool = False) -> None:
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    with status(f"loading {ref}"):
        request = execution_pb2.LoadModelRequest(model=ref, pin=pin, unpin=unpin)
        model = stub.LoadModel(request, timeout=session.limit()).model
    pinned = ", pinned" if model.pinned else ""
    said = f"{model.name}@{model.version} is on {model.device}{pinned}; loading took"
    session.out.say(f"{said} {model.load_s:.2f} s.", as_value(model))


@command(app)
def sleep(
    session: Session,
    ref: Ref,
    force: Annotated[bool, typer.Option("--force", help="Also when clients hold it.")] = False,
) -> None:
    """Give a model's memory back but keep its weights ready to map; its next call wakes it.

    All its device memory goes back after its running calls. What an engine repacked stays as a
    file: in the page cache while nothing else wants the memory, else on the disk.
    """
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    with status(f"putting {ref} to sleep"):
        request = execution_pb2.UnloadModelRequest(model=ref, force=force)
        reply = stub.UnloadModel(request, timeout=session.limit())
    said = f"{ref} sleeps." if reply.was_loaded else f"{ref} was not awake."
    session.out.say(said, as_value(reply))


@command(app, examples=["llmos-ctl model plan my-model"])
def plan(session: Session, ref: Ref) -> None:
    """Say what loading a model would need and what would have to go; loads nothing."""
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    request = execution_pb2.LoadModelRequest(model=ref, dry_run=True)
    reply = stub.LoadModel(request, timeout=session.limit())
    if not reply.needed_bytes:
        said = f"{ref} is loaded."
    elif reply.evict:
        said = f"{ref} needs {size(reply.needed_bytes)} on {reply.device}; "
        said += f"these would go: {', '.join(reply.evict)}."
    else:
        said = f"{ref} needs {size(reply.needed_bytes)} on {reply.device}, which are free."
    session.out.say(said, as_value(reply))


@command(
    app,
    examples=["llmos-ctl model hold my-model", "llmos-ctl model hold my-model -- ./nightly.sh"],
)
def hold(
    session: Session,
    ref: Ref,
    argv: Annotated[
        list[str] | None,
        typer.Argument(help="Hold it while this runs.", show_default="until Ctrl-C"),
    ] = None,
) -> None:
    """Keep a model loaded for as long as this command runs: nobody else unloads or evicts it."""
    from llmos.api.execution.v1 import execution_pb2_grpc
    from llmos.clients.ctl.model_hold import ModelHold

    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    with ModelHold(stub, ref, session.limit()) as held:
        models = held.models()
        model = next(models)
        note(f"{model.name}@{model.version} is held.")
        if argv:
            held.beside(models)
            raise typer.Exit(subprocess.run(argv, check=False).returncode)
        with contextlib.suppress(KeyboardInterrupt):  # that is how people end it
            for again in models:
                note(f"{again.name}@{again.version} is held, by worker {again.pid}.")
