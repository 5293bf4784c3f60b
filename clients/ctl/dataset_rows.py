"""Rows of data sets: look at the first, write all into a file."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.clients.ctl.dataset import Ref, app
from llmos.clients.ctl.output import size
from llmos.clients.ctl.progress import bar
from llmos.clients.ctl.session import UINT32, Session, command
from llmos.lib.errors import AlreadyExists, FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from llmos.lib.datasets import DatasetReader

_WIDE = 60  # characters of a cell on a terminal
_BATCH = 1024
SplitOption = Annotated[
    str, typer.Option(help="Which split. [default: the only one, or train]", show_default=False)
]
_HEAD = ["llmos-ctl dataset head sms --rows 5", "llmos-ctl dataset head sms@2 --split test -o json"]


@command(app, examples=_HEAD)
def head(
    session: Session,
    ref: Ref,
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, max=UINT32, help="How many.")] = 10,
    split: SplitOption = "",
) -> None:
    """Show the first rows."""
    reader = _reader(session, ref, split, min(rows, _BATCH))
    found: list[dict[str, Any]] = []
    for batch in reader:
        found += [_plain(row) for row in batch.to_pylist()]
        if len(found) >= rows:
            break
    columns = [column.name for column in reader.about.columns]
    cells = [[_cell(row[name]) for name in columns] for row in found[:rows]]
    session.out.rows([name.upper() for name in columns], cells, found[:rows])


_EXPORT = [
    "llmos-ctl dataset export sms@2 test.csv --split test",
    "llmos-ctl dataset export mnist@1 train.parquet --split train",
]


@command(app, examples=_EXPORT)
def export(
    session: Session,
    ref: Ref,
    target: Annotated[Path, typer.Argument(help="A file to make: .csv, .jsonl or .parquet.")],
    split: SplitOption = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite it.")] = False,
) -> None:
    """Write a split into a file; its ending says the format."""
    writer = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}.get(target.suffix.lower())
    if writer is None:
        raise InvalidArgument(
            "BAD_OPTION", f"{target.name[:60]!r} does not end in .csv, .jsonl or .parquet."
        )
    if target.exists() and not force:
        raise AlreadyExists("FILE_EXISTS", f"{target} is there already; --force overwrites it.")
    reader = _reader(session, ref, split, _BATCH)
    part = target.with_name(f".{target.name}.part")
    try:
        with bar() as show:
            chosen = {s.name: s for s in reader.about.splits}
            total = sum(s.size for s in chosen.values() if s.name == split or not split)
            rows = sum(s.rows for s in chosen.values() if s.name == split or not split)

            def batches() -> Iterator[Any]:
                for batch in reader:
                    done = total * reader.offset // max(rows, 1)
                    show(f"{reader.offset:,} rows", done, total)
                    yield batch

            count = writer(part, batches())
        part.replace(target)
    except OSError as exc:
        why = exc.strerror or str(exc)
        raise FailedPrecondition("READ_ONLY", f"Cannot write {target} ({why}).") from exc
    finally:
        part.unlink(missing_ok=True)
    written = target.stat().st_size
    session.out.say(
        f"Wrote {count:,} rows of {reader.ref} into {target}, {size(written)}.",
        {"dataset": reader.ref, "file": str(target), "rows": count, "size": written},
    )


def _reader(session: Session, ref: str, split: str, rows: int) -> DatasetReader:
    """Return a reader. Raises MISSING_EXTRA when pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401  # the reader needs it
    except ModuleNotFoundError as exc:
        raise FailedPrecondition(
            "MISSING_EXTRA",
            "The Python package pyarrow is not installed; run: pip install 'llmos[client]'",
        ) from exc
    from llmos.lib.datasets import DatasetReader

    return session.kernel(lambda channel: DatasetReader(channel, ref, split, batch_rows=rows))


def _csv(path: Path, batches: Iterator[Any]) -> int:
    import csv

    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for batch in batches:
            if not count:
                writer.writerow(batch.schema.names)
            for row in batch.to_pylist():
                writer.writerow([_flat(value) for value in row.values()])
            count += batch.num_rows
    return count


def _jsonl(path: Path, batches: Iterator[Any]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for batch in batches:
            for row in batch.to_pylist():
                file.write(json.dumps(_plain(row), ensure_ascii=False) + "\n")
            count += batch.num_rows
    return count


def _parquet(path: Path, batches: Iterator[Any]) -> int:
    import pyarrow.parquet as pq

    count, writer = 0, None
    try:
        for batch in batches:
            writer = writer or pq.ParquetWriter(path, batch.schema, compression="zstd")
            writer.write_batch(batch)
            count += batch.num_rows
    finally:
        if writer is not None:
            writer.close()
    return count


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; bytes become base64."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)  # dates and the like


def _flat(value: Any) -> Any:
    """Return a value as a cell of CSV has it."""
    plain = _plain(value)
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, dict | list) else plain


def _cell(value: Any) -> str:
    """Return a value in one short line."""
    text = "" if value is None else " ".join(str(_flat(value)).split())
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 3]}..."
