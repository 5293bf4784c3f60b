"""Imports from an S3-compatible store (moto's server), by boto3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from local_registry import s3_server
from model_files import tiny_encoder, tiny_gguf, tiny_safetensors
from storage_checks import fails, take

from llmos.lib.errors import DataLoss, Unavailable
from llmos.servers.storage.base import Storage
from llmos.servers.storage.importer import Watch
from llmos.servers.storage.places import transfer

WAYS = ["in process"]  # the same calls over gRPC: test_storage_exchange.py


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    for key, value in {
        "AWS_ENDPOINT_URL_S3": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(key, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    return client


def put(client: Any, prefix: str, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder)}"
            client.put_object(Bucket="models", Key=key, Body=path.read_bytes())


async def test_a_model_below_a_prefix(storage: Storage, bucket: Any, tmp_path: Path) -> None:
    put(bucket, "team/Tiny-Enc", tiny_encoder(tmp_path / "enc"))
    put(bucket, "team/Tiny-Enc-2", tiny_encoder(tmp_path / "enc2", seed=1))
    made = await take(storage, "s3://models/team/Tiny-Enc")
    assert made.version.ref == "tiny-enc@1" and made.version.description.architecture == "bert"
    assert made.version.lineage.source == "s3://models/team/Tiny-Enc"
    names = {f.name for f in made.version.files}
    assert "1_Pooling/config.json" in names and "train.py" not in names


async def test_one_object(storage: Storage, bucket: Any, tmp_path: Path) -> None:
    data = tiny_gguf(tmp_path / "x").read_bytes()
    bucket.put_object(Bucket="models", Key="a/tiny-llama.Q4_0.gguf", Body=data)
    made = await take(storage, "s3://models/a/tiny-llama.Q4_0.gguf")
    assert (made.version.ref, made.version.files[0].name) == ("tiny-llama@1", "model.gguf")
    bucket.put_object(Bucket="models", Key="a/other.gguf", Body=data)
    assert "add #FILE" in (await fails(storage, "s3://models/a")).message
    assert (await take(storage, "s3://models/a#other.gguf")).version.name == "other"


async def test_what_is_not_there(
    storage: Storage, bucket: Any, monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    for source, reason in (
        ("s3://models/none", "NO_SUCH_SOURCE"),
        ("s3://no-such-bucket/x", "NO_SUCH_SOURCE"),
        ("s3://models", "BAD_SOURCE"),
        ("s3:///x", "BAD_SOURCE"),
        ("s3://UPPER/x", "BAD_SOURCE"),
        ("s3://models/" + "x" * 1_000_000, "BAD_SOURCE"),
    ):
        error = await fails(storage, source)
        assert error.reason == reason and len(error.message) < 400
        assert "test-secret" not in error.message
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert (await fails(storage, "s3://models/x")).reason == "SOURCE_UNREACHABLE"


async def test_an_object_that_changes_meanwhile(
    storage: Storage, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, "moving", tiny_encoder(tmp_path / "enc"))
    real = transfer.fetch

    def changed_first(path: Path, *args: Any, **more: Any) -> None:
        if path.name == "model.safetensors":
            newer = tiny_safetensors(tmp_path / "n", seed=9).read_bytes()
            bucket.put_object(Bucket="models", Key="moving/model.safetensors", Body=newer)
        real(path, *args, **more)

    monkeypatch.setattr(transfer, "fetch", changed_first)
    error = await fails(storage, "s3://models/moving")
    assert isinstance(error, DataLoss) and "changed while" in error.message


def test_a_transfer_goes_on_where_it_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PAUSE_S", 0)
    data = bytes(range(256)) * 1000
    asked: list[int] = []

    def ranged(offset: int) -> Any:
        asked.append(offset)
        yield data[offset : offset + 100_000]
        raise Unavailable("SOURCE_UNREACHABLE", "cut")

    args = (len(data), "tag", ranged, Watch())
    transfer.fetch(tmp_path / "a", *args, source="x", sha256="")
    assert (tmp_path / "a").read_bytes() == data and asked == [0, 100_000, 200_000]
    part = next(iter(tmp_path.glob("b*")), None)
    assert part is None

    def dead(offset: int) -> Any:
        asked.append(offset)
        yield data[offset : offset + (100_000 if len(asked) == 1 else 0)]
        raise Unavailable("SOURCE_UNREACHABLE", "cut")

    asked.clear()
    with pytest.raises(Unavailable):
        transfer.fetch(tmp_path / "b", len(data), "tag", dead, Watch(), source="x")
    assert asked[:2] == [0, 100_000] and len(asked) == 5
    asked.clear()
    transfer.fetch(tmp_path / "b", *args, source="x")
    assert asked[0] == 100_000 and (tmp_path / "b").read_bytes() == data


@pytest.mark.parametrize("sent", [b"x" * 99, b"x" * 101, b"y" * 100])
def test_a_place_that_sends_something_else(tmp_path: Path, sent: bytes) -> None:
    import hashlib

    def ranged(offset: int) -> Any:
        yield sent

    right = hashlib.sha256(b"x" * 100).hexdigest()
    with pytest.raises(DataLoss) as caught:
        transfer.fetch(tmp_path / "a", 100, "t", ranged, Watch(), source="s", sha256=right)
    assert caught.value.reason == "DIGEST_MISMATCH" and list(tmp_path.iterdir()) == []
