"""Signatures of models: sign, verify, signatures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmos.clients.ctl.model import Ref, app
from llmos.clients.ctl.output import when
from llmos.clients.ctl.progress import bar
from llmos.clients.ctl.session import QUICK_S, Session, command
from llmos.lib.errors import InvalidArgument

if TYPE_CHECKING:
    from llmos.api.storage.v1 import exchange_pb2, registry_pb2

_PASSWORD = "LLMOS_SIGNING_PASSWORD"


@command(
    app,
    examples=[
        "openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        "llmos-ctl model sign smollm2@3 --key key.pem",
    ],
)
def sign(
    session: Session,
    ref: Ref,
    key: Annotated[
        Path, typer.Option(help=f"Private key, PEM. Its password is read from ${_PASSWORD}.")
    ],
) -> None:
    """Sign a version's files, as `model_signing` does, and keep the signature with it.

    The signature is made here, from the names and sha256 of the files: the private key is never
    sent anywhere. Needs llmos[signing].
    """
    from llmos.api.storage.v1 import exchange_pb2, exchange_pb2_grpc
    from llmos.lib import signing

    version = _version(session, ref)
    password = os.environ.get(_PASSWORD, "")
    public = signing.public_half(key, password)
    files = {file.name: file.sha256 for file in version.files}
    bundle = signing.sign(version.name, files, key, password)
    stub = session.kernel(exchange_pb2_grpc.SignaturesStub)
    exact = f"{version.name}@{version.version}"
    request = exchange_pb2.AddSignatureRequest(ref=exact, bundle=bundle, public_key=public)
    made = stub.AddSignature(request, timeout=session.limit(QUICK_S)).signature
    said = f"Signed {exact} with the key {made.key_sha256[:16]}."
    session.out.say(said, {"ref": exact, **_value(made)})


@command(
    app,
    examples=[
        "openssl ec -in key.pem -pubout -out key.pub",
        "llmos-ctl model verify smollm2@prod --key key.pub",
    ],
)
def verify(
    session: Session,
    ref: Ref,
    key: Annotated[Path, typer.Option(help="Public key of who must have signed it, PEM.")],
) -> None:
    """Read all bytes of a version and compare them with what was signed."""
    from llmos.api.storage.v1 import exchange_pb2, exchange_pb2_grpc

    try:
        public = key.read_bytes()
    except OSError as exc:
        raise InvalidArgument("BAD_KEY", f"Cannot read {key} ({exc.strerror}).") from exc
    stub = session.kernel(exchange_pb2_grpc.SignaturesStub)
    request = exchange_pb2.VerifyVersionRequest(ref=ref, public_key=public)
    reply = exchange_pb2.VerifyVersionResponse()
    with bar() as show:
        for reply in stub.VerifyVersion(request, timeout=session.limit()):
            show(reply.stage, reply.done_bytes, reply.total_bytes)
    added = when(reply.signature.added_unix_s)
    said = f"{reply.ref} is what was signed with the key {reply.signature.key_sha256[:16]}"
    session.out.say(f"{said} ({added}).", {"ref": reply.ref, **_value(reply.signature)})


@command(app)
def signatures(session: Session, ref: Ref) -> None:
    """List who signed a version."""
    from llmos.api.storage.v1 import exchange_pb2, exchange_pb2_grpc

    stub = session.kernel(exchange_pb2_grpc.SignaturesStub)
    request = exchange_pb2.ListSignaturesRequest(ref=ref)
    found = stub.ListSignatures(request, timeout=session.limit(QUICK_S)).signatures
    rows = [[one.key_sha256, when(one.added_unix_s)] for one in found]
    session.out.rows(["KEY (SHA256)", "ADDED"], rows, [_value(one) for one in found])


def _version(session: Session, ref: str) -> registry_pb2.ModelVersion:
    from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc

    stub = session.kernel(registry_pb2_grpc.RegistryStub)
    request = registry_pb2.GetVersionRequest(ref=ref)
    return stub.GetVersion(request, timeout=session.limit(QUICK_S)).version


def _value(signature: exchange_pb2.Signature) -> dict[str, object]:
    return {
        "key_sha256": signature.key_sha256,
        "added_unix_s": signature.added_unix_s,
        "bundle": signature.bundle.decode("utf-8", "replace"),
    }
