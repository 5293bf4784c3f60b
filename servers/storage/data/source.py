"""Where data can come from: a file or folder of this host, a blob, a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llmos.lib.errors import NotFound
from llmos.servers.storage import names
from llmos.servers.storage.data.inputs import Input, open_file, split_of, unreadable, walk
from llmos.servers.storage.data.model import Dataset

_MAILDIR = {"cur", "new", "tmp"}


@dataclass(frozen=True)
class Source:
    """What to read. parent: the data set it is; else `files`. origin: for lineage."""

    files: Sequence[Input]
    name: str
    origin: str
    parent: Dataset | None = None

    @property
    def size(self) -> int:
        """Return the bytes to read."""
        return self.parent.size_bytes if self.parent else sum(file.size for file in self.files)


def of_path(source: str) -> Source:
    """Return what a path means. Raises NO_SUCH_SOURCE, BAD_DATA_FILE."""
    path = Path(source)
    if not path.is_absolute() or "\0" in source:
        raise NotFound(
            "NO_SUCH_SOURCE",
            f"{names.short(source)} is not a source: give the absolute path of a file or a folder "
            "on the storage server's host, blob:SHA256 or dataset:NAME@VERSION.",
        )
    try:
        if path.is_dir():
            return Source(_of_folder(path), _name(path), str(path))
        size = path.stat().st_size
        open_file(path, follow=True).close()
    except OSError as exc:
        short = Path(names.short(exc.filename or source, 200)[1:-1])
        raise unreadable(short, exc.strerror or "not there") from exc
    file = Input(path.name, lambda: open_file(path, follow=True), size)
    return Source([file], _name(path), str(path))


def of_blob(sha256: str, size: int, opener: Callable[[], BinaryIO]) -> Source:
    """Return the source that a stored blob is."""
    return Source([Input(f"blob:{sha256}", opener, size)], "data", f"blob:{sha256}")


def of_dataset(dataset: Dataset) -> Source:
    """Return the source that a data set is."""
    return Source((), dataset.name, f"dataset:{dataset.ref}", dataset)


def _of_folder(path: Path) -> list[Input]:
    files = list(walk(path))
    if any(part in _MAILDIR for file in files for part in Path(file.name).parts[:-1]):
        files = _of_maildir(files)
    splits = {file.split for file in files}
    if "" in splits and len(splits) > 1:  # some files by chance: no file says its split
        files = [Input(f.name, f.opener, f.size, f.label) for f in files]
    return files


def _of_maildir(files: list[Input]) -> list[Input]:
    """Take the mails out of cur and new; folders around a maildir are labels."""
    found = []
    for file in files:
        *folders, inner, _ = ["", *Path(file.name).parts]
        folders = [folder for folder in folders if folder]
        if inner in ("cur", "new"):
            label = folders[-1] if folders else ""
            split = split_of(folders[0]) if len(folders) > 1 else ""
            found.append(Input(file.name, file.opener, file.size, label, split))
    return found


def _name(path: Path) -> str:
    """Return a name for a data set: the file's own, without endings."""
    name = path.absolute().name
    for ending in (".gz", ".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", ".mbox"):
        name = name.removesuffix(ending)
    return names.slug(name) or "data"
