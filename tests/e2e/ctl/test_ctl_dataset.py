"""llmos-ctl dataset against a storage server that runs alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import ctl_forked
import pyarrow.parquet as pq
import pytest
from storage_process import storage

from llmos.lib.config import socket_address


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with TemporaryDirectory(prefix="llmos-") as folder, storage(Path(folder)):
        yield socket_address(Path(folder), "storage")


def ctl(address: str, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = ctl_forked.run("dataset", *words, "--address", address, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_life_of_a_data_set(address: str, tmp_path: Path) -> None:
    source = tmp_path / "reviews.csv"
    rows = [f'"<b>Review</b> {i % 90}",{i % 2}' for i in range(100)]
    source.write_text("\n".join(["text,label", *rows]))
    said = ctl(
        address, "import", str(source), "--split", "train=0.8,test=0.2", "--stratify",
        "--apply", "html,normalized-duplicate", "--license", "CC0-1.0",
    ).stdout  # fmt: skip
    assert said.startswith("Imported reviews@1: 90 rows, 72 train, 18 test, 10 left out")
    again = ctl(address, "import", "dataset:reviews@1", "--name", "reviews").stdout
    assert again == "reviews@1 was imported before.\n"
    listed = json.loads(ctl(address, "list", "-o", "json").stdout)
    assert listed[0]["name"] == "reviews" and listed[0]["rows"] == 90
    shown = ctl(address, "show", "reviews").stdout
    assert "column text   string (text)" in shown and "CC0-1.0" in shown
    report = ctl(address, "report", "reviews").stdout
    assert "90 of 100 kept" in report and "normalized-duplicate" in report
    head = json.loads(ctl(address, "head", "reviews", "-n", "2", "-o", "json").stdout)
    assert len(head) == 2 and head[0]["text"].startswith("Review ")
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        target = tmp_path / name
        ctl(address, "export", "reviews@1", str(target), "--split", "test")
        ctl(address, "export", "reviews@1", str(target), "--split", "test", code=4)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 19
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["label"] in (0, 1)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 18
    ctl(address, "split", "reviews@1", "--split", "a=0.5", "--split", "b=0.5", "--name", "ab")
    assert "ab@1" in ctl(address, "delete", "reviews@1", code=7).stderr
    ctl(address, "delete", "ab@1")
    ctl(address, "delete", "reviews@1")
    ctl(address, "show", "reviews", code=3)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("import", "/none"), 3, "Cannot read /none"),
        (("import", ".", "--apply", "magic"), 2, "'magic' is not a rule; there are html, "),
        (("import", ".", "--split", "train"), 2, "'train' is not NAME=SHARE."),
        (("import", ".", "--split", "train=x"), 2, "'x' is not a share."),
        (("head", "none"), 3, "There is no data set 'none'"),
        (("export", "none", "out.xls"), 2, "does not end in .csv, .jsonl or .parquet"),
    ],
)
def test_errors_are_one_sentence(
    address: str, words: tuple[str, ...], code: int, said: str
) -> None:
    assert said in ctl(address, *words, code=code).stderr
