"""Rows of a data set's splits as examples: numbers, images or tokens, in tables on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.lib.batches import SplitReader
from llmos.lib.datasets import to_numpy
from llmos.lib.errors import InvalidArgument
from llmos.servers.optimizer.train.table import Table, Writer, write_json

TOKENS = 256
_BATCH = 1024


@dataclass(frozen=True)
class Splits:
    """Where a data set version's files are, and which columns have which part."""

    ref: str
    train: Path
    validation: Path | None
    text_column: str
    label_column: str


@dataclass
class About:
    """What the examples are."""

    form: str  # `numbers`, `images`, `texts` (to classify), `stream` (of tokens), `pairs` of texts
    features: list[str] = field(default_factory=list)
    target: str = ""
    shape: list[int] = field(default_factory=list)  # of one row's input
    classes: list[str] = field(default_factory=list)  # empty = the target is a number


@dataclass(frozen=True)
class Examples:
    """Examples to learn from, and to measure."""

    about: About
    train: Table
    validation: Table | None

    @classmethod
    def load(cls, folder: Path) -> Examples:
        """Open what `prepare` left."""
        about = About(**json.loads((folder / "about.json").read_text()))
        validation = folder / "validation"
        return cls(
            about, Table(folder / "train"), Table(validation) if validation.is_dir() else None
        )


class Preparation:
    """Turns splits into tables in a folder. Raises InvalidArgument BAD_SPEC naming the field."""

    def __init__(self, field: str, data: pb.TrainingData, splits: Splits, folder: Path) -> None:
        """field: name of the message `data` in the spec."""
        self._field, self._data, self._splits, self._folder = field, data, splits, folder
        self._schema = _schema(splits.train)

    def run(
        self, *, form: str, classify: bool, tokenizer: Tokenizer | None = None, eos: int = -1
    ) -> Examples:
        """Write the tables, unless an earlier process has. form: as in About; `numbers` may turn
        out to be images. eos: id that ends each text of a stream.
        """
        if (self._folder / "about.json").exists():
            return Examples.load(self._folder)
        about = self._about(form, classify)
        files = {"train": self._splits.train, "validation": self._splits.validation}
        for name, path in files.items():
            if path is None:
                continue
            writer: Callable[[About, Path, Path], None] = self._write_rows
            if form in ("texts", "pairs"):
                assert tokenizer is not None
                writer = _Texts(self, tokenizer).write
            elif form == "stream":
                assert tokenizer is not None
                writer = _Stream(self, tokenizer, eos).write
            if not (self._folder / name).is_dir():
                writer(about, path, self._folder / name)
        write_json(self._folder / "about.json", asdict(about))
        return Examples.load(self._folder)

    def texts(self) -> Iterator[str]:
        """Yield all texts of the split to learn from, e.g. to train a tokenizer."""
        about = self._about("pairs" if self._data.target else "stream", False)
        for columns in self.batches(self._splits.train, [*about.features, *_some(about.target)]):
            for column in columns.values():
                yield from (str(text) for text in column)

    def _about(self, form: str, classify: bool) -> About:
        data, schema = self._data, self._schema
        target = data.target or ("" if form == "stream" else self._splits.label_column)
        if form != "stream" and not target:
            raise self._bad("target", "is empty, and the data set has no label column; name it")
        if target and target not in schema.names:
            raise self._bad("target", f"{target[:60]!r} is no column; there are {_names(schema)}")
        features = list(data.features)
        for name in features:
            if name not in schema.names:
                raise self._bad("features", f"has {name[:60]!r}; there are {_names(schema)}")
        if form in ("numbers", "images"):
            features = features or [f.name for f in schema if f.name != target and _numeric(f.type)]
            if not features:
                raise self._bad("features", f"finds no numbers beside {target!r}; name columns")
            for name in features:
                if not _numeric(schema.field(name).type):
                    raise self._bad("features", f"has {name[:60]!r}, which is no number")
        else:
            features = features or _some(self._splits.text_column)
            if len(features) != 1 or not _stringy(schema.field(features[0]).type):
                raise self._bad("features", f"must be one column of texts of {_names(schema)}")
        about = About(form, features, target)
        if classify:
            about.classes = self._classes(target)
        elif form == "numbers" and not _numeric(schema.field(target).type):
            raise self._bad("target", f"{target!r} is no number; regression needs one")
        if form in ("numbers", "images"):
            first = next(self.batches(self._splits.train, features), {})
            if not first:
                raise self._bad("dataset", "has no rows in this split")
            about.shape = list(_inputs(first, features).shape[1:])
        return about

    def _classes(self, target: str) -> list[str]:
        found: set[Any] = set()
        for columns in self.batches(self._splits.train, [target]):
            found.update(columns[target].tolist())
            if None in found or any(value != value for value in found):
                raise self._bad("target", f"{target!r} is missing in a row; clean the data set")
            if len(found) > 100_000:
                raise self._bad("target", f"{target!r} has over 100,000 values; it is no class")
        if len(found) < 2:
            raise self._bad("target", f"{target!r} has {len(found)} class(es); at least 2 needed")
        return [str(value) for value in sorted(found)]

    def _write_rows(self, about: About, path: Path, folder: Path) -> None:
        writer = Writer(folder, self.rows(path))
        for columns in self.batches(path, [*about.features, about.target]):
            writer.add("input", _inputs(columns, about.features))
            writer.add("target", self.targets(about, columns[about.target]))
        writer.finish()

    def targets(self, about: About, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a column of targets as numbers."""
        if not about.classes:
            numbers = values.astype(np.float32)
            if not np.isfinite(numbers).all():
                raise self._bad("target", f"{about.target!r} is missing or infinite in a row")
            return numbers
        index = {name: i for i, name in enumerate(about.classes)}
        unknown = [v for v in values.tolist() if str(v) not in index]
        if unknown:
            raise self._bad(
                "validation_split", f"has the class {unknown[0]!r}, which is not in the other"
            )
        return np.array([index[str(v)] for v in values.tolist()], np.int64)

    def rows(self, path: Path) -> int:
        """Return how many rows are taken of a split."""
        reader = SplitReader(path)
        reader.close()
        if not reader.rows:
            raise self._bad("dataset", f"has no rows in {path.name}")
        limit = self._data.rows if path == self._splits.train else 0
        return min(limit or reader.rows, reader.rows)

    def batches(self, path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield columns of some rows at a time, as NumPy arrays."""
        reader = SplitReader(path, columns)
        limit = self._data.rows if path == self._splits.train else 0
        try:
            for batch in reader.batches(0, min(limit or reader.rows, reader.rows), _BATCH):
                yield to_numpy(batch)
        finally:
            reader.close()

    @property
    def tokens(self) -> int:
        """Return the longest text."""
        return self._data.tokens or TOKENS

    def _bad(self, name: str, fault: str) -> InvalidArgument:
        ref = self._splits.ref
        return InvalidArgument("BAD_SPEC", f"{self._field}.{name} {fault} (data set {ref}).")

    def too_short(self, path: Path) -> InvalidArgument:
        """Return the error of a stream without a whole block."""
        return self._bad("tokens", f"is {self.tokens}, more than all tokens of a split")


class _Texts:
    """Texts of at most `tokens` tokens, padded; with a class, or with the text to answer."""

    def __init__(self, owner: Preparation, tokenizer: Tokenizer) -> None:
        self._owner = owner
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(owner.tokens)

    def write(self, about: About, path: Path, folder: Path) -> None:
        writer = Writer(folder, self._owner.rows(path))
        for columns in self._owner.batches(path, [*about.features, about.target]):
            self._add(writer, "", columns[about.features[0]])
            if about.form == "pairs":
                self._add(writer, "answer_", columns[about.target])
            else:
                writer.add("target", self._owner.targets(about, columns[about.target]))
        writer.finish()

    def _add(self, writer: Writer, prefix: str, texts: npt.NDArray[Any]) -> None:
        ids = np.zeros((len(texts), self._owner.tokens), np.int32)
        lengths = np.zeros(len(texts), np.int32)
        encoded = self._tokenizer.encode_batch_fast([text or "" for text in texts.tolist()])
        for row, found in enumerate(encoded):
            lengths[row] = len(found.ids)
            ids[row, : len(found.ids)] = found.ids
        writer.add(f"{prefix}ids", ids)
        writer.add(f"{prefix}length", lengths)


class _Stream:
    """All texts, one after another, cut into blocks."""

    def __init__(self, owner: Preparation, tokenizer: Tokenizer, eos: int) -> None:
        self._owner, self._tokenizer, self._eos = owner, tokenizer, eos
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def write(self, about: About, path: Path, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        raw = folder.with_name(folder.name + ".tokens")
        end = [] if self._eos < 0 else [self._eos]
        with raw.open("wb") as file:
            for columns in self._owner.batches(path, about.features):
                texts = [text or "" for text in columns[about.features[0]].tolist()]
                for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                    file.write(np.array([*found.ids, *end], np.int32).tobytes())
        width = self._owner.tokens + 1
        blocks = raw.stat().st_size // 4 // width
        if not blocks:
            raise self._owner.too_short(path)
        stream = np.memmap(raw, np.int32, "r", shape=(blocks, width))
        writer = Writer(folder, blocks)
        for at in range(0, blocks, _BATCH):
            writer.add("ids", np.asarray(stream[at : at + _BATCH]))
        writer.finish()
        raw.unlink()


def _inputs(columns: dict[str, Any], features: Sequence[str]) -> npt.NDArray[Any]:
    """Return an array column as it is; columns of numbers side by side, in float32."""
    if len(features) == 1 and columns[features[0]].ndim > 1:
        array: npt.NDArray[Any] = columns[features[0]]
        return array
    parts = [columns[name].astype(np.float32).reshape(len(columns[name]), -1) for name in features]
    return np.concatenate(parts, axis=1)


def _schema(path: Path) -> Any:
    reader = SplitReader(path)
    reader.close()
    return reader.schema


def _numeric(type: Any) -> bool:
    inner = type.value_type if pa.types.is_fixed_size_list(type) else type
    return bool(
        pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)
    )


def _stringy(type: Any) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


def _names(schema: Any) -> str:
    return ", ".join(schema.names[:30])


def _some(name: str) -> list[str]:
    return [name] if name else []
