"""Which lines of the log are written, also when that changes while a process runs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from llmos.lib import log


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    root = logging.getLogger()
    handlers, level, shown = root.handlers[:], root.level, log.shown()
    log.setup("a process", "info")
    yield out
    log.show(shown)
    root.handlers[:] = handlers
    root.setLevel(level)


def say_all() -> None:
    for level in (10, 20, 25, 30, 40, 50):
        logging.getLogger("x").log(level, "at %d", level)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("debug", [10, 20, 25, 30, 40, 50]),
        ("INFO", [20, 25, 30, 40, 50]),
        ("error", [40, 50]),
        ("debug,error", [10, 40, 50]),
        ("info,info", [20, 25, 50]),
        ("none", [50]),
    ],
)
def test_levels_are_chosen_while_it_runs(
    written: io.StringIO, text: str, expected: list[int]
) -> None:
    log.show(text)
    say_all()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [int(line["message"].removeprefix("at ")) for line in lines] == expected
    assert log.shown() == text
    assert log.levels(log.text_of(log.levels(text))) == log.levels(text)


def test_what_is_no_level_is_refused_and_changes_nothing(written: io.StringIO) -> None:
    for text in ("", "loud", "info,loud"):
        with pytest.raises(ValueError, match="is no level of logs"):
            log.show(text)
    assert log.shown() == "info"
