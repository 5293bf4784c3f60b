from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmos.lib.errors import Unavailable
from llmos.servers.execution.manager.crashes import CrashLog, describe_exit, last_line, oom_kills


class Clock:
    now = 1000.0
    oom_kills = 0

    def __call__(self) -> float:
        return self.now

    def log(self) -> CrashLog:
        return CrashLog(self, lambda: self.oom_kills)


def refused(log: CrashLog) -> float:
    """Return for how long loads are refused; 0 when they are not."""
    try:
        log.check("m@1")
    except Unavailable as exc:
        assert exc.reason == "CRASH_LOOP"
        assert "it fell" in exc.message
        assert exc.retry_after_s is not None
        return exc.retry_after_s
    return 0.0


def test_the_third_crash_within_a_minute_blocks_and_the_back_off_doubles() -> None:
    clock = Clock()
    log = clock.log()
    for _ in range(2):
        log.add("m@1", "it fell", 1)
        clock.now += 10
        assert refused(log) == 0
    log.add("m@1", "it fell", 1)
    assert refused(log) == pytest.approx(5)
    assert log.reason("m@1") == "it fell"
    log.check("other@1")
    clock.now += 5.1
    assert refused(log) == 0  # one more try
    log.add("m@1", "it fell", 1)
    assert refused(log) == pytest.approx(10)
    for _ in range(10):
        clock.now += 1000
        assert refused(log) == 0
        log.add("m@1", "it fell", 1)
    assert refused(log) == pytest.approx(300)  # capped


def test_crashes_far_apart_do_not_count_nor_do_those_before_a_long_life() -> None:
    clock = Clock()
    log = clock.log()
    for _ in range(10):
        log.add("m@1", "it fell", 1)
        clock.now += 31
        assert refused(log) == 0
    for _ in range(3):
        log.add("m@1", "it fell", 1)
    assert refused(log) > 0
    log.lived("m@1")
    assert refused(log) == 0


def test_killed_by_hand_is_no_crash_of_the_model_but_want_of_memory_is() -> None:
    clock = Clock()
    log = clock.log()
    for _ in range(9):
        log.add("m@1", "it fell", -9)
        assert refused(log) == 0
    log.add("m@1", "it fell", -9)  # somebody means it
    assert refused(log) == pytest.approx(5)
    for _ in range(3):
        assert log.reason("n@1") == ""
        clock.oom_kills += 1
        log.add("n@1", "it fell", -9)
    assert log.reason("n@1") == "it fell; the machine ran out of memory meanwhile"


def test_what_the_system_has_killed_is_read(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("oom_score 3\noom_kill 8\npgfault 99\n")
    assert oom_kills(vmstat) == 8
    vmstat.write_text("pgfault 99\n")
    assert oom_kills(vmstat) == 0 == oom_kills(tmp_path / "none")


def test_exits_are_told_in_words() -> None:
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(70) == "exited with status 70"
    assert describe_exit(None) == "ended"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ""),
        (["", "  "], ""),
        (["bare words"], "bare words"),
        ([json.dumps({"message": "cannot load", "cause": "no file"})], "cannot load: no file"),
        (
            [json.dumps({"message": "died", "error": "Traceback\n  x\nKeyError: 1"})],
            "died: KeyError: 1",
        ),
        (["{}", "Fatal Python error: Segmentation fault", "", "Stack:", "  x"], None),
        (["[1]"], "[1]"),
        (["x" * 1000], "x" * 300),
    ],
)
def test_the_last_line_of_a_log(tmp_path: Path, lines: list[str], expected: str | None) -> None:
    path = tmp_path / "log"
    path.write_text("\n".join(lines))
    assert last_line(path) == (expected if expected is not None else lines[1])


def test_no_log_says_nothing(tmp_path: Path) -> None:
    assert last_line(tmp_path / "none") == ""
