"""Names for texts, images and sounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos.clients.ctl import complete
from llmos.clients.ctl.output import as_value
from llmos.clients.ctl.progress import status
from llmos.clients.ctl.session import INTERACTIVE, UINT32, Session, command
from llmos.lib.errors import InvalidArgument

_EXAMPLES = [
    'llmos-ctl classify spam@prod "You have won a prize" "Lunch at noon?"',
    "llmos-ctl classify mobilenet @photo.jpg --top 3",
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, examples=_EXAMPLES)(classify)


def classify(
    session: Session,
    model: Annotated[
        str,
        typer.Argument(help="A model, `name` or `name@version`.", autocompletion=complete.models),
    ],
    items: Annotated[list[str], typer.Argument(help="Texts, or @FILE for an image or sound.")],
    top: Annotated[int, typer.Option(min=1, max=UINT32, help="Likeliest labels of each.")] = 1,
) -> None:
    """Say what texts, images or sounds are, by a model that knows names for them."""
    from llmos.api.execution.v1 import execution_pb2_grpc, predict_pb2

    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    request = predict_pb2.ClassifyRequest(model=model, top=top)
    for item in items:
        if item.startswith("@"):
            request.items.add(file=_file(item[1:]))
        else:
            request.items.add(text=item)
    with status(f"waiting for {model}"):
        reply = stub.Classify(request, timeout=session.limit(), metadata=INTERACTIVE)
    rows = [
        [label.name, f"{label.score:.4f}", item]
        for item, found in zip(items, reply.classifications, strict=True)
        for label in found.labels
    ]
    session.out.rows(["LABEL", "SCORE", "ITEM"], rows, as_value(reply))


def _file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise InvalidArgument("BAD_INPUT", f"Cannot read {path}: {exc.strerror}.") from exc
