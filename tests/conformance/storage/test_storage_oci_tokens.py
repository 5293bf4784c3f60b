"""A registry with bearer tokens and with blobs on another host, as the large ones are."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from model_files import tiny_gguf

from llmos.lib.errors import LLMOSError, PermissionDenied
from llmos.servers.storage.importer import Watch
from llmos.servers.storage.places.oci import Oci

TOKEN = "issued-token"


class Hosts:
    """A registry and a store of blobs, each with what authorization it was shown."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self.registry = self.store = ""
        self.realm = ""
        self.shown: list[tuple[str, str]] = []
        layer = {"mediaType": "application/vnd.ollama.image.model", "size": len(blob)}
        layer["digest"] = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        self.manifest = json.dumps({"schemaVersion": 2, "layers": [layer]}).encode()

    def answer(self, host: str, path: str, given: str) -> tuple[int, dict[str, str], bytes]:
        self.shown.append((host, given))
        if host == self.store:
            return 200, {}, self.blob
        if path.startswith("/token"):
            right = f"Basic {base64.b64encode(b'me:secret').decode()}"
            if given != right or "scope=repository%3Aacme%2Fx%3Apull" not in path:
                return 401, {}, b""
            return 200, {}, json.dumps({"token": TOKEN}).encode()
        if given != f"Bearer {TOKEN}":
            challenge = f'Bearer realm="{self.realm}",service="here",scope="x"'
            return 401, {"WWW-Authenticate": challenge}, b""
        if "/manifests/" in path:
            return 200, {}, self.manifest
        return 307, {"Location": f"http://{self.store}/blob"}, b""


@contextmanager
def serving(hosts: Hosts) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            given = self.headers.get("Authorization", "")
            status, headers, body = hosts.answer(self.headers["Host"], self.path, given)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    made = Hosts(tiny_gguf(tmp_path / "m.gguf").read_bytes())
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with serving(made) as made.registry, serving(made) as made.store:
        made.realm = f"http://{made.registry}/token"
        login = base64.b64encode(b"me:secret").decode()
        auths = {"auths": {made.registry: {"auth": login}}}
        (tmp_path / "config.json").write_text(json.dumps(auths))
        yield made


def fetch(hosts: Hosts, folder: Path) -> Path:
    folder.mkdir()
    return Oci().fetch(f"oci:{hosts.registry}/acme/x:v1", folder, Watch()).path / "model.gguf"


def test_a_token_is_fetched_and_stays_with_the_registry(hosts: Hosts, tmp_path: Path) -> None:
    assert fetch(hosts, tmp_path / "in").read_bytes() == hosts.blob
    assert (hosts.registry, f"Bearer {TOKEN}") in hosts.shown
    assert [given for host, given in hosts.shown if host == hosts.store] == [""]


def test_a_wrong_login(hosts: Hosts, tmp_path: Path) -> None:
    wrong = {"auths": {hosts.registry: {"auth": base64.b64encode(b"me:guess").decode()}}}
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(PermissionDenied) as caught:
        fetch(hosts, tmp_path / "in")
    assert caught.value.reason == "SOURCE_REFUSED" and "guess" not in caught.value.message


@pytest.mark.parametrize("realm", ["", "file:///etc/passwd", "ftp://x/token"])
def test_a_realm_that_is_no_web_address(hosts: Hosts, tmp_path: Path, realm: str) -> None:
    hosts.realm = realm
    with pytest.raises(PermissionDenied):
        fetch(hosts, tmp_path / "in")


@pytest.mark.parametrize(
    "manifest",
    [
        *(b"", b"[]", b"{}", b'{"layers": 1}', b'{"layers": [1]}'),
        *(b"[" * 100_000, b"x" * 5_000_000),
        b'{"layers": [{"mediaType": "x.tar", "digest": "md5:0", "size": 1}]}',
        *(b'{"manifests": []}', b'{"manifests": [{"digest": "../../other"}]}'),
    ],
    ids=range(10),
)
def test_manifests_that_are_none(hosts: Hosts, tmp_path: Path, manifest: bytes) -> None:
    hosts.manifest = manifest
    with pytest.raises(LLMOSError) as caught:
        fetch(hosts, tmp_path / "in")
    assert caught.value.reason in ("DIGEST_MISMATCH", "NO_SUCH_SOURCE")
