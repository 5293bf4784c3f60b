"""Models to and from other places: pull, push, export, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos.clients.ctl.model import Ref, app, bring_in, describe
from llmos.clients.ctl.output import as_value
from llmos.clients.ctl.progress import bar
from llmos.clients.ctl.session import Session, command
from llmos.lib.errors import InvalidArgument

Name = Annotated[str, typer.Option(help="Its name here. [default: from the source]")]
_SCHEMES = ("hf:", "oci:", "s3:")


@command(
    app,
    examples=[
        "llmos-ctl model pull hf:HuggingFaceTB/SmolLM2-135M-Instruct",
        "llmos-ctl model pull hf:bartowski/SmolLM2-135M-Instruct-GGUF#SmolLM2-Q4_K_M.gguf",
        "llmos-ctl model pull oci:registry.example.com/team/smollm2:v1",
        "llmos-ctl model pull s3://models/team/smollm2 --name smollm2",
    ],
)
def pull(
    session: Session,
    source: Annotated[
        str,
        typer.Argument(
            help="hf:OWNER/NAME[@REVISION][#FILE], oci:HOST/REPOSITORY:TAG or s3://BUCKET/PREFIX."
        ),
    ],
    name: Name = "",
) -> None:
    """Import a model from a hub, an OCI registry or an S3 store.

    The storage server fetches it, with the credentials it finds where these tools keep them: the
    environment and files of its user. Interrupted, the same command goes on where it stopped.
    """
    if not source.startswith(_SCHEMES):
        raise InvalidArgument(
            "BAD_SOURCE",
            f"{source[:80]!r} is no place to pull from: write hf:OWNER/NAME, "
            "oci:HOST/REPOSITORY:TAG or s3://BUCKET/PREFIX; files are imported by `model import`.",
        )
    version, existed = bring_in(session, source, name)
    ref = f"{version.name}@{version.version}"
    said = f"{ref} was pulled before." if existed else f"Pulled {ref}: {describe(version)}."
    session.out.say(said, {**as_value(version), "existed": existed})


@command(
    app, examples=["llmos-ctl model push smollm2@prod oci:registry.example.com/team/smollm2:v1"]
)
def push(
    session: Session,
    ref: Ref,
    destination: Annotated[str, typer.Argument(help="oci:HOST/REPOSITORY:TAG.")],
) -> None:
    """Push a version to an OCI registry, as an artifact of the CNCF ModelPack specification."""
    if not destination.startswith("oci:"):
        raise InvalidArgument(
            "BAD_DESTINATION",
            f"{destination[:80]!r} is no registry: write oci:HOST/REPOSITORY:TAG; folders are "
            "written by `model export`.",
        )
    location = _export(session, ref, destination)
    session.out.say(f"Pushed {ref} to {location}.", {"ref": ref, "location": location})


@command(app, examples=["llmos-ctl model export smollm2@3 ./smollm2-3"])
def export(
    session: Session,
    ref: Ref,
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet, or is empty.")],
) -> None:
    """Write a version's files to a folder on the storage server's host, with its signature."""
    location = _export(session, ref, str(folder.absolute()))
    session.out.say(f"Exported {ref} to {location}.", {"ref": ref, "location": location})


@command(app, examples=["llmos-ctl model convert ./pytorch_model.bin --name my-model"])
def convert(
    session: Session,
    path: Annotated[Path, typer.Argument(help="A pickled checkpoint, or a folder with one.")],
    name: Name = "",
) -> None:
    """Convert a pickled checkpoint (torch.save) to safetensors and import that.

    It is read by torch.load(weights_only=True) in a process of its own that has bounded memory
    and time, no network, and ends with the conversion. Only tensors are kept.
    """
    from llmos.api.storage.v1 import exchange_pb2, exchange_pb2_grpc

    stub = session.kernel(exchange_pb2_grpc.ExchangeStub)
    request = exchange_pb2.ConvertPickleRequest(source=str(path.absolute()), name=name)
    reply = exchange_pb2.ConvertPickleResponse()
    with bar() as show:
        for reply in stub.ConvertPickle(request, timeout=session.limit()):
            if not reply.HasField("version"):
                show(reply.stage, reply.done_bytes, reply.total_bytes)
    version = reply.version
    ref = f"{version.name}@{version.version}"
    said = (
        f"{ref} was imported before." if reply.existed else f"Imported {ref}: {describe(version)}."
    )
    session.out.say(said, {**as_value(version), "existed": reply.existed})


def _export(session: Session, ref: str, destination: str) -> str:
    from llmos.api.storage.v1 import exchange_pb2, exchange_pb2_grpc

    stub = session.kernel(exchange_pb2_grpc.ExchangeStub)
    request = exchange_pb2.ExportModelRequest(ref=ref, destination=destination)
    location = ""
    with bar() as show:
        for reply in stub.ExportModel(request, timeout=session.limit()):
            location = reply.location or location
            show(reply.stage, reply.done_bytes, reply.total_bytes)
    return location
