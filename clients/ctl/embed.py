"""Texts to vectors."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos.clients.ctl import complete
from llmos.clients.ctl.output import as_value
from llmos.clients.ctl.progress import status
from llmos.clients.ctl.session import INTERACTIVE, Session, command

_SHOWN = 5


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, examples=['llmos-ctl embed minilm "a cat" "a dog" -o json'])(embed)


def embed(
    session: Session,
    model: Annotated[
        str,
        typer.Argument(help="A model, `name` or `name@version`.", autocompletion=complete.models),
    ],
    texts: Annotated[list[str], typer.Argument(help="One or more texts.")],
) -> None:
    """Turn texts into vectors; the table has their first components and their cosines."""
    from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc

    stub = session.kernel(execution_pb2_grpc.ExecutionStub)
    request = execution_pb2.EmbedRequest(model=model, texts=texts)
    with status(f"waiting for {model}"):
        reply = stub.Embed(request, timeout=session.limit(), metadata=INTERACTIVE)
    vectors = [list(e.values) for e in reply.embeddings]
    rows = []
    for index, (text, vector) in enumerate(zip(texts, vectors, strict=True)):
        head = " ".join(f"{x:+.4f}" for x in vector[:_SHOWN])
        cosine = sum(a * b for a, b in zip(vectors[0], vector, strict=True))
        cut = "yes" if index in reply.truncated else ""
        rows.append([str(index), str(len(vector)), f"{cosine:.4f}", f"{head} ...", cut, text])
    columns = ["#", "SIZE", "COSINE TO 0", "VECTOR", "CUT", "TEXT"]
    session.out.rows(columns, rows, as_value(reply))
