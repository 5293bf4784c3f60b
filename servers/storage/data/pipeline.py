"""One import, from a source to a registered version; plain blocking code for a thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llmos.lib.batches import SplitReader
from llmos.servers.storage import names
from llmos.servers.storage.blobs import Blobs, no_such_blob
from llmos.servers.storage.blobs.staging import Staging
from llmos.servers.storage.data import source as sources
from llmos.servers.storage.data.catalog import Catalog
from llmos.servers.storage.data.clean import Cleaner
from llmos.servers.storage.data.faults import bad_data
from llmos.servers.storage.data.files import BlobFile, as_file
from llmos.servers.storage.data.model import (
    Column,
    DataFormat,
    Dataset,
    Draft,
    Imported,
    Lineage,
    Mode,
    Order,
    Rule,
    Split,
)
from llmos.servers.storage.data.readers import csv, idx, images, jsonl, mail, parquet, plain
from llmos.servers.storage.data.readers.base import (
    BATCH_BYTES,
    BATCH_ROWS,
    Context,
    Parts,
    Reader,
)
from llmos.servers.storage.data.recognise import recognise
from llmos.servers.storage.data.report import Tally
from llmos.servers.storage.data.roles import Roles, roles_of
from llmos.servers.storage.data.seen import Scratch
from llmos.servers.storage.data.source import Source
from llmos.servers.storage.data.splits import ALL, Splitter
from llmos.servers.storage.data.splits import check as check_splits
from llmos.servers.storage.data.writer import SplitWriter
from llmos.servers.storage.importer import Watch

_READERS: dict[DataFormat, Reader] = {
    DataFormat.CSV: csv.read,
    DataFormat.JSONL: jsonl.read,
    DataFormat.PARQUET: parquet.read,
    DataFormat.LINES: plain.read_lines,
    DataFormat.PARAGRAPHS: plain.read_paragraphs,
    DataFormat.MAIL: mail.read,
    DataFormat.IMAGES: images.read,
    DataFormat.IDX: idx.read,
}
_GIVEN_ORDER = ("train", "validation", "test")


def import_dataset(blobs: Blobs, catalog: Catalog, order: Order, watch: Watch) -> Imported:
    """Import; see Datasets.import_dataset. Changes nothing unless it returns."""
    if order.name:
        names.check_name(order.name)
    check_splits(order.splitting)
    watch.say("looking at the source")
    with blobs.staging() as staging:
        source = _find(blobs, catalog, order.source, staging)
        watch.expect(source.size)
        with contextlib.closing(Scratch(staging.folder)) as scratch:
            work = _Import(blobs, order, source, staging, scratch, watch)
            draft = work.run()
        watch.say("registering")
        with blobs.placing(staging.staged) as sql:
            dataset, existed = catalog.insert(sql, draft)
    return Imported(dataset, existed)


def _find(blobs: Blobs, catalog: Catalog, source: str, staging: Staging) -> Source:
    kind, _, rest = source.partition(":")
    if kind == "blob":
        digest = names.check_digest(rest)
        if not blobs.pin(digest):
            raise no_such_blob(digest)
        staging.pinned.append(digest)
        return sources.of_blob(
            digest, blobs.sizes([digest])[0], lambda: as_file(blobs.open(digest))
        )
    if kind == "dataset":
        found = catalog.get(rest)
        for split in found.splits:
            if not blobs.pin(split.sha256):
                raise no_such_blob(split.sha256)
            staging.pinned.append(split.sha256)
        return sources.of_dataset(found)
    return sources.of_path(source)


class _Import:
    """The state of one import."""

    def __init__(
        self,
        blobs: Blobs,
        order: Order,
        source: Source,
        staging: Staging,
        scratch: Scratch,
        watch: Watch,
    ) -> None:
        self._blobs = blobs
        self._order = order
        self._source = source
        self._staging = staging
        self._scratch = scratch
        self._watch = watch
        self._tally = Tally()
        self._writers: dict[str, SplitWriter] = {}
        self._open = contextlib.ExitStack()  # closes them in any case
        self._schema: Any = None
        self._roles = Roles("", "", ())

    def run(self) -> Draft:
        """Read, clean, split and write; return what to register."""
        order, source = self._order, self._source
        kind = order.reading.format
        if source.parent is not None:
            parts, kind = self._stored(source.parent), source.parent.format
        else:
            kind = kind or recognise(source.files)
            parts = self._read(kind)
        self._watch.say("reading")
        with self._open, contextlib.closing(parts):
            splits = self._write(self._cleaned(parts))
        if not any(split.rows for split in splits):
            raise bad_data("the source", "no row is left", "give a file with rows, or clean less")
        parent = source.parent
        return Draft(
            name=order.name or source.name,
            columns=_columns(self._schema),
            splits=tuple(splits),
            lineage=Lineage(
                source=source.origin,
                parents=(parent.ref,) if parent else (),
                job=order.job,
                step=("split" if order.splitting.shares else "clean") if parent else "import",
            ),
            format=kind,
            license=order.license or (parent.license if parent else ""),
            text_column=self._roles.text,
            label_column=self._roles.label,
            report=self._tally.report(),
        )

    def _read(self, kind: DataFormat) -> Parts:
        leave_out = None
        if self._order.cleaning.mode(Rule.UNREADABLE) is Mode.APPLY:
            self._tally.watch(Rule.UNREADABLE, Mode.APPLY)

            def leave_out(number: int) -> None:
                self._tally.found(Rule.UNREADABLE, [number])

        context = Context(self._order.reading, self._watch.add, leave_out)
        return _READERS[kind](self._source.files, context)

    def _stored(self, parent: Dataset) -> Parts:
        reading = self._order.reading
        self._order = replace(
            self._order,
            reading=replace(
                reading,
                text_column=reading.text_column or parent.text_column,
                label_column=reading.label_column or parent.label_column,
            ),
        )
        for split in parent.splits:
            reader = SplitReader(BlobFile(self._blobs.open(split.sha256)))
            try:
                for batch in reader.batches(0, reader.rows, BATCH_ROWS):
                    yield split.name, batch
            finally:
                reader.close()
            self._watch.add(split.size)

    def _cleaned(self, parts: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        cleaner: Cleaner | None = None
        for split, batch in parts:
            if cleaner is None:
                self._schema = batch.schema
                self._roles = roles_of(batch.schema, self._order.reading)
                cleaner = Cleaner(self._order.cleaning, self._roles, self._tally, self._scratch)
            rows = max(1, min(BATCH_ROWS, batch.num_rows * BATCH_BYTES // max(batch.nbytes, 1)))
            for start in range(0, batch.num_rows, rows):  # cleaning makes copies: of little
                self._watch.add(0)
                yield split, cleaner.clean(batch.slice(start, rows))

    def _write(self, parts: Iterator[tuple[str, Any]]) -> list[Split]:
        shares = self._order.splitting.shares
        first = next(parts, None)
        if first is None:
            return []
        if not shares:
            for split, batch in _chain(first, parts):
                self._to(split or ALL, batch)
            return self._finish(sorted(self._writers, key=_given))
        splitter = Splitter(
            self._order.splitting, self._roles.content, self._roles.label, self._scratch
        )
        rows: Iterator[Any] = (batch for _, batch in _chain(first, parts))
        if splitter.two_passes:
            rows = self._second_pass(splitter, rows)
        for name in splitter.names:
            self._writers[name] = self._writer(name)
        for batch in rows:
            self._watch.add(0)
            assigned = pa.array(splitter.assign(batch), pa.int32())
            for number, name in enumerate(splitter.names):
                self._to(name, batch.filter(pc.equal(assigned, number)))
        return self._finish(splitter.names)

    def _second_pass(self, splitter: Splitter, rows: Iterator[Any]) -> Iterator[Any]:
        """Let the splitter see all rows; yield them again, out of a file of the staging."""
        between = self._writer(ALL)
        for batch in rows:
            splitter.look(batch)
            between.write(batch)
        staged = between.end()
        self._watch.say("splitting")
        reader = SplitReader(self._blobs.readable(staged))
        try:
            yield from reader.batches(0, reader.rows, BATCH_ROWS)
        finally:
            reader.close()

    def _to(self, split: str, batch: Any) -> None:
        if split not in self._writers:
            self._writers[split] = self._writer(split)
        self._writers[split].write(batch)

    def _writer(self, split: str) -> SplitWriter:
        return self._open.enter_context(
            contextlib.closing(SplitWriter(split, self._schema, self._staging))
        )

    def _finish(self, order: list[str]) -> list[Split]:
        self._watch.say("writing")
        return [self._writers[name].finish() for name in order]


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _given(split: str) -> tuple[int, str]:
    """Order the splits that a source has: the usual ones first."""
    return (_GIVEN_ORDER.index(split) if split in _GIVEN_ORDER else len(_GIVEN_ORDER), split)


def _columns(schema: Any) -> tuple[Column, ...]:
    found = []
    for field in schema:
        shape = (field.metadata or {}).get(b"shape", b"").decode()
        found.append(
            Column(field.name, str(field.type), tuple(int(n) for n in shape.split(",") if n))
        )
    return tuple(found)
