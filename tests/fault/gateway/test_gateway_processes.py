"""Several gateway processes on one port: any of them may die, the first one, too."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from echo_execution import EchoModel, serving
from gateway_process import Gateway, gateway

from llmos.lib.config import run_dir

BODY = {"model": "echo", "messages": [{"role": "user", "content": "a b c"}]}
COUNTED = re.compile(
    r'^llmos_gateway_requests_total\{code="200",.*route="/v1/chat/completions"\} (\S+)$', re.M
)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answering(state_dir: Path, numbers: set[int]) -> bool:
    """Whether these processes take part: each one's socket appears after it listens."""
    found = {path.name for path in run_dir(state_dir).glob("gateway-*.metrics")}
    return {f"gateway-{n}.metrics" for n in numbers} <= found


def ask(url: str) -> str:
    """Ask on a connection of its own; one that a dying process took is made again."""
    for last in (False, False, True):
        try:
            reply = httpx.post(url + "/v1/chat/completions", json=BODY, timeout=30)
        except httpx.TransportError:
            if last:
                raise
            continue
        return str(reply.json()["choices"][0]["message"]["content"])
    raise AssertionError


def others(running: Gateway) -> list[psutil.Process]:
    return psutil.Process(running.process.pid).children()


def test_any_process_may_die(tmp_path: Path) -> None:
    with serving(EchoModel(), tmp_path) as address:
        with gateway(tmp_path, address, "--processes", "2") as first:
            until(lambda: answering(tmp_path, {0, 1}))
            for _ in range(8):
                assert ask(first.url) == "a b c"
            # Whoever is scraped counts for all.
            scrapes = [httpx.get(first.url + "/metrics", timeout=30).text for _ in range(4)]
            assert {sum(map(float, COUNTED.findall(text))) for text in scrapes} == {8.0}

            (victim,) = others(first)
            victim.kill()
            for _ in range(8):
                assert ask(first.url) == "a b c"
            until(lambda: [p for p in others(first) if p.pid != victim.pid] != [])
            until(lambda: first.log_text().count('"serving"') == 3)
            (left,) = others(first)

            first.process.kill()  # the other one goes on alone ...
            first.process.wait()
            for _ in range(4):
                assert ask(first.url) == "a b c"
        port = str(urlsplit(first.url).port)
        flags = ("--processes", "2", "--port", port)
        with gateway(tmp_path, address, *flags) as second:  # ... until there is a new first one
            until(lambda: not left.is_running() or left.status() == psutil.STATUS_ZOMBIE)
            assert ask(second.url) == "a b c"
            until(lambda: second.log_text().count('"serving"') == 2)
            (last,) = others(second)
        assert not last.is_running(), "SIGTERM ends all of them"


def test_a_port_is_never_shared_with_others(tmp_path: Path) -> None:
    with serving(EchoModel(), tmp_path) as address:
        with gateway(tmp_path, address, "--processes", "2") as running:
            port = str(urlsplit(running.url).port)
            with pytest.raises(RuntimeError, match=f"TCP port {port}"):
                with gateway(tmp_path / "other", address, "--processes", "2", "--port", port):
                    pass
