"""The files between job server and job process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmos.api.optimizer.v1.process_pb2 import JobProgress, JobRecord
from llmos.servers.optimizer.folder import Folder, Report, Tail
from llmos.servers.optimizer.job import corpus
from llmos.servers.optimizer.launcher import new_id


def test_reports_are_read_once_and_whole(tmp_path: Path) -> None:
    tail, path = Tail(tmp_path / "p"), tmp_path / "p"
    assert list(tail.read()) == []
    report = Report(path)
    report.send(JobProgress(stage="one"))
    report.send(JobProgress(stage="two", progress=0.5))
    report.close()
    assert [m.stage for m in tail.read()] == ["one", "two"]
    whole = tmp_path / "whole"
    report = Report(whole)
    report.send(JobProgress(stage="x" * 300))
    report.close()
    data = whole.read_bytes()
    for cut in range(len(data)):
        part = tmp_path / f"cut{cut}"
        part.write_bytes(data[:cut])
        reader = Tail(part)
        assert list(reader.read()) == []
        part.write_bytes(data)
        assert [m.stage for m in reader.read()] == ["x" * 300]
    assert list(tail.read()) == []


def test_a_folder_that_was_not_finished_has_no_record(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "j")
    assert folder.load() is None
    folder.create(JobRecord(source="m@1"))
    loaded = folder.load()
    assert loaded is not None and loaded.source == "m@1"
    with pytest.raises(FileExistsError):
        (tmp_path / "file").write_text("")
        Folder(tmp_path / "file").create(JobRecord())


def test_the_lock_is_held_by_whoever_inherits_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    lock = folder.lock()
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=lock, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        os.close(lock)
        assert folder.locked()
        child.kill()
        child.wait()
    assert not folder.locked()


def test_ids_sort_by_time() -> None:
    ids = [""]
    for _ in range(5):
        ids.append(new_id(ids[-1]))
    assert ids == sorted(set(ids))


def test_the_corpus_is_real_and_always_the_same() -> None:
    texts = corpus.texts(256)
    assert len(set(texts)) == 256 and texts == corpus.texts(256)
    assert all(40 <= len(t) <= 1500 for t in texts)
