"""`llmos-ctl model load`: how a version is to be run."""

from __future__ import annotations

import json
import tomllib
from typing import Annotated

import typer

from llmos.clients.ctl.model import Ref, app
from llmos.clients.ctl.output import as_value, size
from llmos.clients.ctl.progress import status
from llmos.clients.ctl.session import Session, command
from llmos.lib.errors import InvalidArgument

_EXAMPLES = [
    "llmos-ctl model load smollm2 --pin",
    "llmos-ctl model load smollm2 --precision int8 --threads 1",
    "llmos-ctl model load minilm --instances 2 --threads 1 --set batching.delay_ms=2",
]


@command(app, examples=_EXAMPLES)
def load(
    session: Session,
    ref: Ref,
    pin: Annotated[bool, typer.Option("--pin", help="Never evict it for other models.")] = False,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, int8 or int4; of language models.", show_default=False)
    ] = "",
    threads: Annotated[
        int, typer.Option(min=0, help="Compute threads, on as many cores of its own; 0 = default.")
    ] = 0,
    device: Annotated[
        str, typer.Option(help="cpu, cuda:0 ...; instances take several in turn: cuda:0,cuda:1")
    ] = "",
    instances: Annotated[
        int,
        typer.Option(
            min=0,
            help="Workers that share its calls; 0 = as it says itself, or one. More or fewer while "
            "it is loaded is fine.",
        ),
    ] = 0,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Instead of what its serving.toml says: docs/models.md.",
        ),
    ] = None,
) -> None:
    """Load a model before its first call, and wait until it is ready.

    Options hold until it is unloaded, also when its worker dies and is replaced.
    """
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

    options = execution_pb2.LoadOptions(
        precision=precision,
        threads=threads,
        device=device,
        instances=instances,
        serving=dict(map(_change, changes or [])),
    )
    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    with status(f"loading {ref}"):
        request = execution_pb2.LoadModelRequest(model=ref, pin=pin)
        if options != execution_pb2.LoadOptions():
            request.options.CopyFrom(options)
        model = stub.LoadModel(request, timeout=session.limit()).model
    devices = " and ".join(dict.fromkeys(i.device for i in model.instances)) or model.device
    pids = ", ".join(str(i.pid) for i in model.instances) or str(model.pid)
    where = f"{model.name}@{model.version} is loaded on {devices} by {model.engine}"
    session.out.say(f"{where}, pid {pids}, {size(model.used_bytes)}.", as_value(model))


def _change(text: str) -> tuple[str, str]:
    """Return a key of serving.toml and its value as TOML, a bare word as a string."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidArgument("BAD_VALUE", f"--set {text[:60]!r} is not KEY=VALUE.")
    try:
        tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        value = json.dumps(value)
    return key, value
