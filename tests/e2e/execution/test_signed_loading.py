"""Only what is signed and as it was signed is loaded, whichever way a load is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from execution_stack import Client, Stack, client, stack
from model_files import tiny_onnx

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.inference import open_inference_pb2 as oip
from llmos.api.storage.v1 import (
    aliases_pb2,
    aliases_pb2_grpc,
    exchange_pb2,
    exchange_pb2_grpc,
    registry_pb2,
)
from llmos.lib import signing
from llmos.lib.rpc import from_rpc_error

Load = Callable[[Client], Awaitable[object]]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key.pem"
    form = serialization
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    )
    path.write_bytes(pem)
    path.with_suffix(".pub").write_bytes(signing.public_half(path))
    return path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Iterator[Stack]:
    required = ("--require-signature", str(key.with_suffix(".pub")))
    with stack(tmp_path_factory.mktemp("signed"), storage=required) as running:
        yield running


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as made:
        yield made


async def held(llmos: Client) -> None:
    async for _ in llmos.execution.HoldModel(pb.HoldModelRequest(model="net"), timeout=60):
        return


WAYS: dict[str, Load] = {
    "asked for": lambda c: c.load("net"),
    "by version": lambda c: c.load("net@1"),
    "by alias": lambda c: c.load("net@prod"),
    "planned": lambda c: c.execution.LoadModel(
        pb.LoadModelRequest(model="net", dry_run=True), timeout=60
    ),
    "held": held,
    "on demand": lambda c: c.infer("net"),
    "on demand, by alias": lambda c: c.infer("net@prod"),
    "as Triton's": lambda c: c.inference.RepositoryModelLoad(
        oip.RepositoryModelLoadRequest(model_name="net"), timeout=60
    ),
}


async def refusals(llmos: Client) -> dict[str, str]:
    """Return by way of loading the reason that it is refused with."""
    found = {}
    for way, load in WAYS.items():
        try:
            await load(llmos)
        except grpc.aio.AioRpcError as exc:
            found[way] = from_rpc_error(exc).reason
    assert not any(model.pid for model in (await llmos.models()).values())
    return found


async def test_only_what_is_signed_and_sound_is_loaded(
    llmos: Client, tmp_path: Path, key: Path
) -> None:
    await llmos.import_model(str(tiny_onnx(tmp_path / "net.onnx")), "net")
    aliases = aliases_pb2_grpc.AliasesStub(llmos.channel)
    await aliases.SetAlias(aliases_pb2.SetAliasRequest(model="net", alias="prod", version=1))
    assert await refusals(llmos) == dict.fromkeys(WAYS, "NOT_SIGNED")

    found = await llmos.registry.GetVersion(registry_pb2.GetVersionRequest(ref="net"))
    (file,) = found.version.files
    bundle = signing.sign("net", {file.name: file.sha256}, key)
    public = key.with_suffix(".pub").read_bytes()
    signatures = exchange_pb2_grpc.SignaturesStub(llmos.channel)
    request = exchange_pb2.AddSignatureRequest(ref="net", bundle=bundle, public_key=public)
    await signatures.AddSignature(request)
    assert (await llmos.load("net")).pid
    await llmos.infer("net")
    await llmos.unload("net@1")

    path = Path(file.path)
    sound = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert await refusals(llmos) == dict.fromkeys(WAYS, "BLOB_DAMAGED")
    path.write_bytes(sound)
    await llmos.infer("net@prod")  # the files count, not what was thought of them
    await llmos.unload("net@1")
