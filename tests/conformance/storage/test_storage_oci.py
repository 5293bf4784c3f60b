"""Pulls from a real OCI registry, of artifacts as different tools write them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from local_registry import LOGIN, oci_registry
from model_files import tiny_encoder, tiny_gguf
from storage_checks import fails, take

from llmos.servers.storage.base import Storage

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
RAW = "application/vnd.cncf.model.weight.v1.raw"
TITLE = "org.opencontainers.image.title"

WAYS = ["in process"]  # the same calls over gRPC: test_storage_exchange.py


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with oci_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


class Pusher:
    """Puts artifacts into a registry by plain HTTP, as any tool would."""

    def __init__(self, http: httpx.Client, host: str, repo: str) -> None:
        self.url = f"http://{host}/v2/{repo}"
        self.http = http

    def blob(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        where = self.http.post(f"{self.url}/blobs/uploads/").headers["Location"]
        joint = "&" if "?" in where else "?"
        self.http.put(f"{where}{joint}digest={digest}", content=data).raise_for_status()
        return digest

    def layer(self, name: str, data: bytes, kind: str = RAW, size: int = -1) -> dict[str, object]:
        notes = {TITLE: name} if name else {}
        size = len(data) if size < 0 else size
        digest = self.blob(data)
        return {"mediaType": kind, "digest": digest, "size": size, "annotations": notes}

    def push(self, layers: list[dict[str, object]], tag: str = "v1") -> str:
        config = self.blob(b"{}")
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": config,
                "size": 2,
            },
            "layers": layers,
        }
        data = json.dumps(manifest).encode()
        url, headers = f"{self.url}/manifests/{tag}", {"Content-Type": MANIFEST}
        self.http.put(url, content=data, headers=headers).raise_for_status()
        return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tarred(entries: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


async def test_an_artifact_of_raw_layers(
    storage: Storage, registry: str, http: httpx.Client, tmp_path: Path
) -> None:
    root = tiny_encoder(tmp_path / "enc")
    to = Pusher(http, registry, "acme/tiny-enc")
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
    layers = [to.layer(str(p.relative_to(root)), p.read_bytes()) for p in files]
    digest = to.push(layers)
    made = await take(storage, f"oci:{registry}/acme/tiny-enc:v1")
    assert made.version.ref == "tiny-enc@1"
    assert made.version.lineage.source == f"oci:{registry}/acme/tiny-enc@{digest}"
    assert "train.py" not in {f.name for f in made.version.files}
    assert (await take(storage, f"oci://{registry}/acme/tiny-enc@{digest}")).existed


async def test_an_artifact_of_tar_layers(
    storage: Storage, registry: str, http: httpx.Client, tmp_path: Path
) -> None:
    root = tiny_encoder(tmp_path / "enc")
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    to = Pusher(http, registry, "acme/tarred")
    kind = "application/vnd.cncf.model.weight.v1.tar+gzip"
    config = files.pop("config.json")
    to.push([to.layer("", tarred(files), kind), to.layer("config.json", config)])
    made = await take(storage, f"oci:{registry}/acme/tarred:v1")
    assert made.version.description.architecture == "bert"


async def test_an_artifact_of_ollama(
    storage: Storage, registry: str, http: httpx.Client, tmp_path: Path
) -> None:
    to = Pusher(http, registry, "library/tiny")
    data = tiny_gguf(tmp_path / "x").read_bytes()
    kind = "application/vnd.ollama.image"
    to.push([to.layer("", data, f"{kind}.model"), to.layer("", b"{}", f"{kind}.params")], "latest")
    made = await take(storage, f"oci:{registry}/library/tiny")
    assert [f.name for f in made.version.files] == ["model.gguf"]


async def test_hostile_artifacts(
    storage: Storage, registry: str, http: httpx.Client, tmp_path: Path, state_dir: Path
) -> None:
    to = Pusher(http, registry, "acme/hostile")
    gguf = tiny_gguf(tmp_path / "x").read_bytes()
    kind = "application/vnd.cncf.model.weight.v1.tar"
    bomb = tarred({"model.gguf": bytes(80 << 20)})
    cases: list[tuple[list[dict[str, object]], str, str]] = [
        ([to.layer("../../evil", gguf)], "BAD_NAME", "not a file name"),
        ([to.layer("/etc/cron.d/evil", gguf)], "BAD_NAME", "not a file name"),
        ([to.layer("x" * 1_000_000, gguf)], "BAD_NAME", "not a file name"),
        ([to.layer("", tarred({"../../evil": gguf}), kind)], "BAD_ARCHIVE", "lies outside"),
        ([to.layer("", tarred({"/tmp/evil": gguf}), kind)], "BAD_ARCHIVE", "lies outside"),
        ([to.layer("", tarred({"x": b""}, tarfile.SYMTYPE), kind)], "BAD_ARCHIVE", "a link"),
        ([to.layer("", tarred({"x": b""}, tarfile.LNKTYPE), kind)], "BAD_ARCHIVE", "a link"),
        ([to.layer("", tarred({"x": b""}, tarfile.FIFOTYPE), kind)], "BAD_ARCHIVE", "a device"),
        ([to.layer("", bomb, kind)], "BAD_ARCHIVE", "zip bomb"),
        ([to.layer("", gguf, kind)], "BAD_ARCHIVE", "damaged"),
        ([to.layer("model.gguf", b"\x80\x02}.")], "PICKLE_REFUSED", ""),
        ([to.layer("model.pt", b"\x80\x02}.")], "PICKLE_REFUSED", ""),
        ([to.layer("", gguf)], "NO_SUCH_SOURCE", "no file names"),
    ]
    for number, (layers, reason, words) in enumerate(cases):
        to.push(layers, f"t{number}")
        error = await fails(storage, f"oci:{registry}/acme/hostile:t{number}")
        assert error.reason == reason and words in error.message, (number, error)
        assert len(error.message) < 600
    assert [p for p in (state_dir / "storage" / "incoming").rglob("*") if p.is_file()] == []
    assert not (tmp_path / "evil").exists() and not Path("/tmp/evil").exists()


async def test_missing_and_malformed(storage: Storage, registry: str) -> None:
    assert (await fails(storage, f"oci:{registry}/acme/none:v1")).reason == "NO_SUCH_SOURCE"
    for source in (
        "oci:",
        "oci:host",
        "oci:host/UPPER:x",
        "oci:h/a@sha256:12",
        "oci:h/" + "a" * 9999,
    ):
        error = await fails(storage, source)
        assert error.reason == "BAD_SOURCE" and len(error.message) < 400
    error = await fails(storage, "oci:127.0.0.1:9/acme/x:v1")
    assert error.reason == "SOURCE_UNREACHABLE"


async def test_a_registry_that_wants_a_login(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registry").mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with oci_registry(tmp_path / "registry", login=True) as host:
        error = await fails(storage, f"oci:{host}/acme/x:v1")
        assert error.reason == "SOURCE_REFUSED" and "docker login" in error.message
        for auth, reason in (("dGVzdGVyOndyb25n", "SOURCE_REFUSED"), (LOGIN, "NO_SUCH_SOURCE")):
            (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
            error = await fails(storage, f"oci:{host}/acme/x:v1")
            assert error.reason == reason and "wrong" not in error.message
