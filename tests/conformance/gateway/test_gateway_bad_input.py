"""Bodies and requests that are wrong in every way: a 4xx and a sentence, a gateway unharmed."""

from __future__ import annotations

import socket
from typing import Any, Protocol

import httpx
import pytest

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
JSON = {"content-type": "application/json"}


class World(Protocol):
    http: httpx.AsyncClient
    model: Any


NOT_JSON = {
    "nothing": b"",
    "cut short": b'{"model": ',
    "no UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "echo"}'.encode("utf-16"),
    "a list": b"[]",
    "null": b"null",
    "deep lists": b"[" * 40_000,
    "deep objects": b'{"a":' * 15_000,
    "half a character": b'{"model": "\\ud800"}',
    "two values": b"{}{}",
    "a comment": b'{"model": "echo" /* which */}',
}


@pytest.mark.parametrize("path", [CHAT, TEXT, EMBED])
@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_is_no_json_object(world: World, path: str, raw: bytes) -> None:
    reply = await world.http.post(path, content=raw, headers=JSON)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"]) == (
        400,
        "bad_json",
        "invalid_request_error",
    )
    assert error["message"].endswith(".")


def said(**extra: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": "x"}], **extra}


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, said() | {"messages": {"role": "user"}}, "invalid_type", "messages"),
    (CHAT, said() | {"messages": ["x"]}, "invalid_type", "messages[0]"),
    (CHAT, said(max_tokens="9"), "invalid_type", "max_tokens"),
    (CHAT, said(max_tokens=2**32), "invalid_value", "max_tokens"),
    (CHAT, said(n=True), "invalid_type", "n"),
    (CHAT, said(seed=1.5), "invalid_type", "seed"),
    (CHAT, said(seed=2**64), "invalid_value", "seed"),
    (CHAT, said(logit_bias={"no id": 1}), "invalid_value", "logit_bias"),
    (CHAT, said(stop=[1]), "invalid_type", "stop"),
    (CHAT, said(stream="yes"), "invalid_type", "stream"),
    (CHAT, said(stream_options=[]), "invalid_type", "stream_options"),
    (CHAT, said(tools=[{"type": "function"}]), "missing_required_parameter", "tools[0].function"),
    (CHAT, said(response_format={"type": "xml"}), "invalid_value", "response_format.type"),
    (TEXT, {"model": "echo", "prompt": {"a": 1}}, "invalid_type", "prompt"),
    (TEXT, {"model": "echo", "prompt": [[1], "a"]}, "invalid_type", "prompt"),
    (TEXT, {"model": "echo", "prompt": [-1]}, "invalid_type", "prompt"),
    (TEXT, {"model": "echo", "prompt": ["x"] * 9}, "too_many_prompts", "prompt"),
    (EMBED, {"model": "vec", "input": [1, 2]}, "invalid_type", "input"),
    (EMBED, {"model": "vec", "input": ["x"] * 2049}, "invalid_value", "input"),
    (EMBED, {"model": "vec"}, "missing_required_parameter", "input"),
]


@pytest.mark.parametrize(("path", "body", "code", "param"), WRONG)
async def test_wrong_types_and_sizes(
    world: World, path: str, body: dict[str, Any], code: str, param: str
) -> None:
    reply = await world.http.post(path, json=body)
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"].endswith(".")


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
RAW = {
    "no chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nZZ\r\n",
    "two lengths": HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}x",
    "length and chunks": HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length below 0": HEAD + b"content-length: -1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a path with a zero": b"GET /v1/mo\x00dels HTTP/1.1\r\nhost: x\r\n\r\n",
    "an unknown method": b"BREW /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW.keys())
def test_what_is_no_http(echo_gateway: tuple[Any, Any], raw: bytes) -> None:
    with connected(echo_gateway[0].url) as client:
        client.sendall(raw)
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
        assert client.recv(4096) == b""  # and it hangs up
    assert httpx.get(echo_gateway[0].url + "/healthz").status_code == 200


def test_a_request_that_ends_early(echo_gateway: tuple[Any, Any]) -> None:
    process, model = echo_gateway
    for sent in (HEAD[:30], HEAD, HEAD + b"content-length: 100\r\n\r\n{"):
        with connected(process.url) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(4096) == b""
    assert httpx.get(process.url + "/healthz").status_code == 200
    assert model.running == 0
    assert "Traceback" not in process.log_text()


def connected(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)
