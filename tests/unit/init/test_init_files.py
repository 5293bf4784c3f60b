"""What init keeps in files: logs, the journal, the lock."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llmos.lib.errors import AlreadyExists
from llmos.servers.init import logs
from llmos.servers.init.journal import Journal
from llmos.servers.init.lock import locked


@pytest.mark.parametrize("count", [0, 1, 5, 3000])
def test_tail(tmp_path: Path, count: int) -> None:
    path = tmp_path / "x.log"
    lines = [f"line {i} {'é' * (i % 70)}" for i in range(count)]
    path.write_text("".join(f"{line}\n" for line in lines))
    for wanted in (1, 4, 100, 5000):
        assert logs.tail(path, wanted) == (lines[-wanted:], path.stat().st_size)


def test_tail_since_and_without_a_last_line_end(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("old\nold\nnew 1\nnew 2")
    assert logs.tail(path, 50, since=8)[0] == ["new 1", "new 2"]
    assert logs.tail(tmp_path / "absent", 5) == ([], 0)


def test_last_words() -> None:
    assert logs.last_words([]) == ""
    assert logs.last_words(["a", "llmos-x: Port 1 is in use.", ""]) == "llmos-x: Port 1 is in use."
    assert logs.last_words(['{"level": "error", "message": "no room"}']) == "no room"
    assert logs.last_words(["3"]) == "3"


def test_rotation_sets_aside_only_what_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    logs.rotate(path, 10)
    path.write_text("12345")
    logs.rotate(path, 10)
    assert path.exists()
    path.write_text("12345678901")
    logs.rotate(path, 10)
    assert not path.exists() and (tmp_path / "x.log.1").read_text() == "12345678901"


def test_crash_log_has_when_how_and_the_last_fifty_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("".join(f"{i}\n" for i in range(80)))
    logs.note_crash(path, 7, "killed by SIGKILL", 0)
    logs.note_crash(path, 8, "exit code 1", path.stat().st_size)
    first, *lines, second = (tmp_path / "x.crash.log").read_text().splitlines()
    assert first.endswith("pid 7: killed by SIGKILL")
    assert [line.strip() for line in lines] == [str(i) for i in range(30, 80)]
    assert second.endswith("pid 8: exit code 1")


async def test_follow_goes_on_over_a_rotation_and_half_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("1\n2\n3\n")
    seen: list[str] = []

    async def read() -> None:
        async for lines in logs.follow(path, 2):
            seen.extend(lines)

    async def until(*lines: str) -> None:
        async with asyncio.timeout(10):
            while seen != list(lines):
                await asyncio.sleep(0.02)

    task = asyncio.create_task(read())
    await until("2", "3")
    with path.open("a") as file:
        file.write("4\nha")
    await until("2", "3", "4")
    with path.open("a") as file:
        file.write("lf\n")
    await until("2", "3", "4", "half")
    path.rename(tmp_path / "x.log.1")
    path.write_text("new\n")
    await until("2", "3", "4", "half", "new")
    task.cancel()


def test_journal_keeps_counts_for_the_next_init(tmp_path: Path) -> None:
    path = tmp_path / "init.json"
    Journal(path).put("a", 3, "killed by SIGKILL")
    assert Journal(path).get("a") == (3, "killed by SIGKILL")
    assert Journal(path).get("b") == (0, "")
    Journal(path).clear()
    assert Journal(path).get("a") == (0, "")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}'])
def test_a_damaged_journal_costs_only_counts(tmp_path: Path, text: str) -> None:
    path = tmp_path / "init.json"
    path.write_text(text)
    journal = Journal(path)
    journal.put("a", 1, "")
    assert Journal(path).get("a") == (1, "")


def test_a_full_disk_does_not_stop_supervision(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "init.tmp").symlink_to("/dev/full")  # every write to it fails: no space left
    journal = Journal(tmp_path / "init.json")
    journal.put("a", 2, "")
    assert journal.get("a") == (2, "")
    assert "No space left on device" in caplog.text


def test_second_lock_names_the_first(tmp_path: Path) -> None:
    import os

    with locked(tmp_path, tmp_path):
        with pytest.raises(AlreadyExists) as caught, locked(tmp_path, tmp_path):
            pass
        assert caught.value.reason == "ALREADY_UP" and str(os.getpid()) in caught.value.message
    with locked(tmp_path, tmp_path):
        pass
