"""The gateway when clients, the OS or the gateway itself go away."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from echo_execution import EchoModel, serving
from gateway_process import Gateway, gateway

from llmos.lib.config import run_dir

MESSAGES: Any = [{"role": "user", "content": "a b c"}]
ENDLESS = {"model": "endless", "messages": MESSAGES, "max_tokens": 10**6}
SILENT = {"model": "silent", "messages": MESSAGES}


def wait_until(condition: Callable[[], bool], timeout_s: float = 5) -> float:
    """Return how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s
        time.sleep(0.005)
    return time.monotonic() - start


def command(state_dir: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "llmos.servers.gateway", "--state-dir", str(state_dir), *flags]


def test_a_stream_is_cancelled_when_its_client_goes(process: Gateway, model: EchoModel) -> None:
    with httpx.Client(base_url=process.url) as client:
        body = ENDLESS | {"stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()  # a generator that nobody holds closes the connection
            next(lines)
            wait_until(lambda: model.running == 1, 10)
    wait_until(lambda: model.running == 0, 10)
    assert model.cancelled == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", SILENT),
        ("/v1/chat/completions", SILENT | {"stream": True}),
        ("/v1/chat/completions", ENDLESS),
        ("/v1/completions", {"model": "silent", "prompt": ["a", "b"]}),
        ("/v1/embeddings", {"model": "silent", "input": "a"}),
    ],
)
def test_waiting_calls_are_cancelled_when_their_client_goes(
    process: Gateway, model: EchoModel, path: str, body: dict[str, Any]
) -> None:
    wanted = 2 if "prompt" in body else 1
    answered = "endless@1" if body is ENDLESS else ""
    address, text = urlsplit(process.url), json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n"
    with socket.create_connection((address.hostname, address.port or 0)) as client:
        client.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + text)
        pieces = 20 if answered else 0  # the gateway has heard of its model by then
        wait_until(lambda: model.running == wanted and model.made >= pieces, 20)
    wait_until(lambda: model.cancelled == wanted and model.running == 0, 10)
    counted = f'requests_total{{code="499",model="{answered}",route="{path}"}}'
    wait_until(lambda: counted in httpx.get(process.url + "/metrics").text)


def test_the_deadline_is_504_and_stops_the_work(process: Gateway, model: EchoModel) -> None:
    reply = httpx.post(process.url + "/v1/chat/completions", json=SILENT, timeout=10)
    assert (reply.status_code, reply.json()["error"]["type"]) == (504, "server_error")
    wait_until(lambda: model.running == 0, 10)


def test_a_client_that_stops_reading_holds_the_model_back(
    process: Gateway, model: EchoModel
) -> None:
    address = urlsplit(process.url)
    text = b'{"model":"flood","stream":true,"messages":[{"role":"user","content":"a"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    with socket.create_connection((address.hostname, address.port or 0)) as client:
        client.sendall(head % len(text) + text)
        wait_until(lambda: model.made > 0)
        seen = 0
        while model.made != seen:
            seen = model.made
            assert seen < 1000, "64 MB are on their way to a client that reads nothing"
            time.sleep(0.3)
        assert httpx.get(process.url + "/healthz").status_code == 200
    wait_until(lambda: model.running == 0, 10)


def test_a_body_that_never_comes_is_408(process: Gateway) -> None:
    address = urlsplit(process.url)
    with socket.create_connection((address.hostname, address.port or 0)) as client:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
        client.sendall(head)
        client.settimeout(5)
        assert b" 408 " in client.recv(1000)


def test_garbage_is_a_400(process: Gateway) -> None:
    address = urlsplit(process.url)
    with socket.create_connection((address.hostname, address.port or 0)) as client:
        client.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        client.settimeout(5)
        assert b" 400 " in client.recv(1000)
    assert httpx.get(process.url + "/healthz").status_code == 200


def test_sigterm_lets_streams_finish_and_takes_no_more(victim: Gateway) -> None:
    body = ENDLESS | {"stream": True, "max_tokens": 100}  # half a second
    with httpx.Client(base_url=victim.url) as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            victim.process.send_signal(signal.SIGTERM)
            rest = list(lines)
    assert "data: [DONE]" in rest
    assert victim.process.wait(10) == 0
    assert not (run_dir(victim.state_dir) / "gateway.address").exists()
    assert "Traceback" not in victim.log_text()


def test_streams_beyond_the_grace_break_visibly(victim: Gateway) -> None:
    with httpx.Client(base_url=victim.url) as client:
        body = ENDLESS | {"stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            victim.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                for line in lines:
                    assert line != "data: [DONE]"
    assert victim.process.wait(10) == 0


def test_the_os_may_come_back(tmp_path: Path) -> None:
    with serving(EchoModel(), tmp_path) as address:
        pass
    with gateway(tmp_path, address) as process:
        with openai.OpenAI(base_url=process.url + "/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="echo", messages=MESSAGES)
            assert caught.value.status_code == 503
            ready = httpx.get(process.url + "/readyz")
            assert ready.status_code == 503
            assert ready.json()["missing"]
            assert httpx.get(process.url + "/healthz").status_code == 200
            with serving(EchoModel(), tmp_path):
                wait_until(lambda: httpx.get(process.url + "/readyz").status_code == 200, 10)
                reply = client.chat.completions.create(model="echo", messages=MESSAGES)
                assert reply.choices[0].message.content == "a b c"


def test_a_killed_gateway_starts_again_at_once(tmp_path: Path) -> None:
    with serving(EchoModel(), tmp_path) as address:
        with gateway(tmp_path, address) as first:
            port = urlsplit(first.url).port
            first.process.kill()
            first.process.wait()
        (run_dir(tmp_path) / "gateway.address").unlink()
        with gateway(tmp_path, address, "--port", str(port)) as second:
            assert second.url == first.url
            assert httpx.get(second.url + "/readyz").status_code == 200


def test_a_busy_port_is_one_sentence(process: Gateway, tmp_path: Path) -> None:
    port = str(urlsplit(process.url).port)
    flags = ("--port", port, "--kernel", "none", "--peers", "execution=unix:x")
    done = subprocess.run(
        command(tmp_path / "other", *flags), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"TCP port {port}" in done.stderr


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--kernel", "none", "--port", "0"), 1, "--peers execution=ADDRESS"),
        (("--port", "seven"), 2, "--port = 'seven'"),
        (("--port", "70000"), 2, "70000"),
    ],
)
def test_what_cannot_start_says_why(
    tmp_path: Path, flags: tuple[str, ...], code: int, says: str
) -> None:
    done = subprocess.run(command(tmp_path, *flags), capture_output=True, text=True, timeout=30)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1)
    assert says in done.stderr
