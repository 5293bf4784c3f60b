"""The wire: TLS, and clients that are slow, large, or do not read."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from echo_execution import EchoBackend, EchoModel

from llmos.servers.gateway import protocol, web
from llmos.servers.gateway.app import build
from llmos.servers.gateway.config import GatewayConfig

HOST = b"host: x\r\n"


@asynccontextmanager
async def serving(cert: str = "", key: str = "") -> AsyncIterator[int]:
    """The gateway's own HTTP server over the echo, in this process; gives its port."""
    sock = web.listen("127.0.0.1", 0)
    server = web.HttpServer(build(EchoBackend(EchoModel()), GatewayConfig()), 1.0, cert, key)
    server.load()
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield sock.getsockname()[1]
    finally:
        server.stop()
        await task


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(form))
    (folder / "key.pem").write_bytes(
        key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


async def test_tls_and_nothing_but_tls(pair: tuple[Path, Path]) -> None:
    trust = ssl.create_default_context(cafile=str(pair[0]))
    async with serving(str(pair[0]), str(pair[1])) as port:
        async with httpx.AsyncClient(verify=trust, timeout=30) as client:
            body = {"model": "echo", "prompt": "a b", "stream": True}
            reply = await client.post(f"https://127.0.0.1:{port}/v1/completions", json=body)
            assert reply.status_code == 200 and reply.text.endswith("data: [DONE]\n\n")
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://127.0.0.1:{port}/healthz")
        async with httpx.AsyncClient(timeout=30) as stranger:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await stranger.get(f"https://127.0.0.1:{port}/healthz")


def test_files_that_are_no_pair_are_one_sentence(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nothing")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "llmos.servers.gateway", "--state-dir", str(tmp_path)),
            *("--port", "0", "--kernel", "none", "--peers", "execution=unix:x"),
            *("--tls-cert", str(pair[0]), "--tls-key", str(tmp_path / "bad.pem")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert "tls_cert and tls_key cannot be used" in sentence


async def talk(port: int, *parts: bytes) -> bytes:
    """Send the parts a moment apart and return what came until the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "parts", [(b"",), (b"GET / HT",), (b"GET / HTTP/1.1\r\n" + HOST, b"a: b\r\n")], ids=len
)
async def test_a_head_that_never_ends(
    monkeypatch: pytest.MonkeyPatch, parts: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.3)
    async with serving() as port:
        assert (await talk(port, *parts)).startswith(b"HTTP/1.1 408 ")


async def test_a_head_that_is_too_large() -> None:
    long = b"GET /healthz HTTP/1.1\r\n" + HOST + b"a: " + b"x" * protocol.MAX_HEAD
    async with serving() as port:
        for parts in ((long + b"\r\n\r\n",), (long,)):
            assert (await talk(port, *parts)).startswith(b"HTTP/1.1 431 ")


async def test_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "UNREAD_S", 0.3)
    body = b'{"model": "flood", "prompt": "a", "stream": true}'
    length = f"content-length: {len(body)}\r\n\r\n".encode()
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"POST /v1/completions HTTP/1.1\r\n" + HOST + length + body)
        await asyncio.sleep(1)  # longer than it may leave its answer unread
        with pytest.raises((ConnectionError, EOFError)):
            while piece := await asyncio.wait_for(reader.read(1 << 20), 30):
                assert b"[DONE]" not in piece
            raise EOFError
        writer.close()
