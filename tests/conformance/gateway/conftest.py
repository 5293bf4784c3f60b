"""The gateway in two worlds: in this process over the echo model, and as a process over gRPC."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from echo_execution import EchoBackend, EchoModel, serving
from gateway_process import Gateway, gateway

from llmos.servers.gateway.app import build
from llmos.servers.gateway.config import GatewayConfig


@dataclass
class World:
    """A gateway to ask, and the model behind it to look at."""

    http: httpx.AsyncClient
    model: EchoModel


@pytest.fixture(scope="session")
def echo_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, EchoModel]]:
    model = EchoModel()
    state_dir: Path = tmp_path_factory.mktemp("gateway")
    limits = ("--max-body-bytes", "100000", "--max-prompts", "8")
    with serving(model, state_dir) as address, gateway(state_dir, address, *limits) as process:
        yield process, model


@pytest.fixture(params=["in-process", "process"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "process":
        process, model = request.getfixturevalue("echo_gateway")
        async with httpx.AsyncClient(base_url=process.url, timeout=30) as client:
            yield World(client, model)
        return
    model = EchoModel()
    config = GatewayConfig(max_body_bytes=100_000, max_prompts=8)
    transport = httpx.ASGITransport(build(EchoBackend(model), config))
    async with httpx.AsyncClient(base_url="http://test", transport=transport) as client:
        yield World(client, model)
