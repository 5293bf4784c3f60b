"""A power loss, as bad as it may be: files have what was last fsynced, new names without an fsync
of their folder are gone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("powerloss.c")


def build(folder: Path) -> Path | None:
    """Compile what watches fsync; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "powerloss.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"],
        check=True,
        timeout=60,
    )
    return library


def cut(root: Path, seen: Path) -> int:
    """Take away below `root` what `seen` does not know as durable; return how many things."""
    lost = 0
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        if folder.is_dir():
            lost += _entries(folder, seen)
    for file in root.rglob("*"):
        if file.is_file() and not file.is_symlink():
            lost += _content(file, seen)
    return lost


def _entries(folder: Path, seen: Path) -> int:
    listing = seen / f"d.{folder.stat().st_ino}"
    lines = listing.read_text().splitlines() if listing.exists() else []
    durable = dict(line.split(" ", 1)[::-1] for line in lines)
    lost = 0
    for entry in folder.iterdir():
        if durable.get(entry.name) != str(entry.lstat().st_ino):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            lost += 1
    return lost


def _content(file: Path, seen: Path) -> int:
    inode, now = file.stat().st_ino, file.stat().st_size
    whole, size = seen / f"f.{inode}", seen / f"s.{inode}"
    if size.exists() and (not whole.exists() or size.stat().st_mtime > whole.stat().st_mtime):
        durable = int(size.read_text())
        if now > durable:
            os.truncate(file, durable)
        return int(now > durable)
    content = whole.read_bytes() if whole.exists() else b""
    if file.read_bytes() == content:
        return 0
    mode = file.stat().st_mode
    file.chmod(0o600)
    with file.open("r+b") as stream:  # the same inode: other names of the file lose it as well
        stream.write(content)
        stream.truncate()
    file.chmod(mode)
    return 1
