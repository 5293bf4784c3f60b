"""Gateway processes over the echo model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from echo_execution import EchoModel, serving
from gateway_process import Gateway, gateway

FLAGS = ("--drain-s", "2", "--body-timeout-s", "1", "--request-timeout-s", "3")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, EchoModel]]:
    """A gateway that a module's tests leave alive."""
    model, state_dir = EchoModel(), tmp_path_factory.mktemp("gateway")
    with serving(model, state_dir) as address, gateway(state_dir, address, *FLAGS) as running:
        yield running, model


@pytest.fixture
def process(shared: tuple[Gateway, EchoModel]) -> Gateway:
    return shared[0]


@pytest.fixture
def model(shared: tuple[Gateway, EchoModel]) -> EchoModel:
    """The shared gateway's model, with its counters at zero."""
    model = shared[1]
    model.running = model.cancelled = model.made = 0
    return model


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway for one test, to be killed."""
    with serving(EchoModel(), tmp_path) as address, gateway(tmp_path, address, *FLAGS) as running:
        yield running
