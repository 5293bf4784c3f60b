"""/llmos/v1 and the console without a system behind them: the table, the guard, the pages."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import httpx
import pytest
from google.protobuf.descriptor_pb2 import MethodOptions
from starlette.applications import Starlette

from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.servers.gateway.admin import Channels
from llmos.servers.gateway.admin_calls import CALLS, Call
from llmos.servers.gateway.app import build
from llmos.servers.gateway.backend import Backend
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.webconsole import Console

LEVELS = MethodOptions.IdempotencyLevel


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.verb} {call.path}")
def test_the_table_agrees_with_the_protos(call: Call) -> None:
    level = LEVELS.Name(call.method.GetOptions().idempotency_level)
    computes = call.path.endswith(("/classify", "/tokenize"))  # their input is too large for a URL
    assert (call.verb == "GET") == (level == "NO_SIDE_EFFECTS") or computes
    assert not call.method.client_streaming
    fields = call.request.DESCRIPTOR.fields_by_name
    for name in re.findall(r"{(\w+)", call.path):
        assert name in fields, f"{name} is no field of {call.request.DESCRIPTOR.name}"


def test_every_endpoint_is_there_once() -> None:
    places = [(call.verb, call.path) for call in CALLS]
    assert len(places) == len(set(places))


def alone(server: str) -> None:
    raise FailedPrecondition("NO_PEER", f"gateway runs alone and needs {server}.")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with reached(GatewayConfig(admin_hosts="console.lan")) as made:
        yield made


@asynccontextmanager
async def reached(
    config: GatewayConfig, address: str = "127.0.0.1"
) -> AsyncIterator[httpx.AsyncClient]:
    """The gateway's own application, called from an address. No backend is ever asked."""
    app = build(cast(Backend, None), config, cast(Channels, alone))
    transport = httpx.ASGITransport(app=app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as made:
        yield made


def code(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


async def test_the_list_of_endpoints(client: httpx.AsyncClient) -> None:
    rows = (await client.get("/llmos/v1")).json()["endpoints"]
    assert {
        "path": "GET /llmos/v1/kernel/ports",
        "rpc": "llmos.api.kernel.v1.Admin/ListPorts",
    } in rows


async def test_alone_it_says_what_it_needs(client: httpx.AsyncClient) -> None:
    response = await client.get("/llmos/v1/jobs")
    assert (response.status_code, code(response)) == (400, "no_peer")


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"host": "evil.example"}, "bad_host"),
        ({"host": "evil.example:8080"}, "bad_host"),
        ({"origin": "http://evil.example"}, "cross_origin"),
        ({"origin": "null"}, "cross_origin"),
        ({"content-type": "text/plain"}, "not_json"),
    ],
)
async def test_what_other_pages_make_a_browser_send_is_refused(
    client: httpx.AsyncClient, headers: dict[str, str], reason: str
) -> None:
    sent = {"content-type": "application/json", **headers}
    response = await client.post("/llmos/v1/models/m/unload", content=b"{}", headers=sent)
    assert code(response) == reason


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:8080"},
        {"host": "[::1]:8080"},
        {"host": "console.lan"},
        {"host": "10.1.2.3:80", "origin": "http://10.1.2.3:80"},
    ],
)
async def test_our_own_pages_pass(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await client.post("/llmos/v1/models/m/unload", json={}, headers=headers)
    assert code(response) == "no_peer"


@pytest.mark.parametrize("body", [b"[]", b"{", b"nul", b"[" * 100_000])
async def test_a_body_that_is_no_object(client: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = await client.post("/llmos/v1/jobs", content=body, headers=headers)
    assert (response.status_code, code(response)) == (400, "bad_json")


@pytest.mark.parametrize(
    ("admin", "address", "reason"),
    [
        ("local", "10.0.0.9", "not_local"),
        ("local", "::ffff:10.0.0.9", "not_local"),
        ("none", "127.0.0.1", "admin_off"),
        ("all", "10.0.0.9", "no_peer"),
        ("local", "::1", "no_peer"),
        ("local", "::ffff:127.0.0.1", "no_peer"),
    ],
)
async def test_who_may_use_it(admin: str, address: str, reason: str) -> None:
    async with reached(GatewayConfig(admin=admin), address) as made:
        assert code(await made.get("/llmos/v1/jobs")) == reason


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(InvalidArgument, match="admin = 'everyone'"):
        GatewayConfig(admin="everyone")


async def test_a_console_that_is_not_built_says_how_to_build_it(tmp_path: Path) -> None:
    app = Starlette(routes=Console(tmp_path).routes())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        page = await client.get("/console/")
        assert page.status_code == 503 and "make console" in page.text
        assert (await client.get("/console")).headers["location"] == "/console/"
        (tmp_path / "assets").mkdir()
        (tmp_path / "index.html").write_text("<p>built</p>")
        (tmp_path / "assets" / "a.js").write_text("1")
        page = await client.get("/console/")
        assert (
            page.text == "<p>built</p>"
            and "frame-ancestors" in page.headers["content-security-policy"]
        )
        assert (await client.get("/console/assets/a.js")).status_code == 200
        assert (await client.get("/console/assets/../index.html")).status_code == 404
