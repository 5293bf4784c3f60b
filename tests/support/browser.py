"""A real browser for tests: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from llmos.servers.gateway.webconsole import BUILT

WAIT_MS = 80_000  # of what a busy machine may take; nothing waits for so long in a test that passes


def needed() -> str:
    """Return chromium's path; skip where there is none, or where the console is not built."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium (make system-deps)")
    if not (BUILT / "index.html").is_file():
        pytest.skip("needs the console (make console)")
    return chromium


@contextmanager
def browser() -> Iterator[Browser]:
    """Run a browser."""
    arguments = ["--disable-gpu", "--disable-dev-shm-usage"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=needed(), args=arguments)
        try:
            yield running
        finally:
            running.close()


@contextmanager
def page(
    browser: Browser, base_url: str, *, width: int = 1280, dark: bool = False, locale: str = "en-US"
) -> Iterator[Page]:
    """Open a page at `/console/`; at the end, whatever it complained about fails the test."""
    context = browser.new_context(
        viewport={"width": width, "height": 850},
        color_scheme="dark" if dark else "light",
        locale=locale,
        base_url=base_url,
    )
    context.set_default_timeout(WAIT_MS)
    opened = context.new_page()
    complaints: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        # What a busy machine answers too late is asked again, and said on the page meanwhile.
        late = "status of 50" in message.text
        if message.type in ("error", "warning") and not late:
            complaints.append(message.text)

    opened.on("console", heard)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        opened.goto("/console/")
        yield opened
        assert not complaints, complaints
    finally:
        context.close()
