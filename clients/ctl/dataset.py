"""Data sets: import, list, show, report, head, split, export, delete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmos.clients.ctl.dataset_options import (
    Apply,
    ContentColumns,
    DelimiterOption,
    EncodingOption,
    FormatOption,
    HeaderColumns,
    LabelColumn,
    Language,
    LicenseOption,
    MaxChars,
    MinChars,
    NameOption,
    NoQuotes,
    Off,
    Seed,
    Shares,
    Stratify,
    TextColumn,
    Types,
    cleaning,
    reading,
    splitting,
)
from llmos.clients.ctl.output import as_value, short_name, size, when
from llmos.clients.ctl.progress import bar
from llmos.clients.ctl.session import QUICK_S, Session, command

if TYPE_CHECKING:
    from llmos.api.storage.v1 import data_pb2

app = typer.Typer(
    help="Import, clean, split, look at, export and delete data sets.", no_args_is_help=True
)
Ref = Annotated[
    str, typer.Argument(help="A data set, `name` (its newest version) or `name@version`.")
]
VersionRef = Annotated[str, typer.Argument(help="A version, `name@version`.")]

_IMPORTS = [
    "llmos-ctl dataset import ./reviews.csv --split train=0.8 --split test=0.2 --stratify",
    "llmos-ctl dataset import ./mails --name spam --apply html,normalized-duplicate",
    "llmos-ctl dataset import ./SMSSpamCollection --column label,text --no-quotes --name sms",
    "llmos-ctl dataset import ./photos --apply unreadable      # a folder for each label",
]


@command(app, "import", examples=_IMPORTS)
def import_(
    session: Session,
    source: Annotated[
        str, typer.Argument(help="A file, a folder, blob:SHA256 or dataset:NAME@VERSION.")
    ],
    name: NameOption = "",
    split: Shares = None,
    seed: Seed = 0,
    stratify: Stratify = False,
    apply: Apply = None,
    off: Off = None,
    language: Language = None,
    min_chars: MinChars = 0,
    max_chars: MaxChars = 0,
    format: FormatOption = None,
    delimiter: DelimiterOption = "",
    column: HeaderColumns = None,
    no_quotes: NoQuotes = False,
    encoding: EncodingOption = "",
    type: Types = None,
    text_column: TextColumn = "",
    label_column: LabelColumn = "",
    content_column: ContentColumns = None,
    license: LicenseOption = "",
) -> None:
    """Import data as a new version: CSV, JSON lines, Parquet, text, mails, images, IDX.

    What it is, is told by its content. The same data under the same name is never stored twice.
    """
    from llmos.api.storage.v1 import data_pb2

    if ":" not in source and Path(source).exists():
        source = str(Path(source).absolute())  # storage has another working directory
    request = data_pb2.ImportDatasetRequest(
        source=source,
        name=name,
        read=reading(
            format,
            delimiter,
            column,
            no_quotes,
            encoding,
            type,
            text_column,
            label_column,
            content_column,
        ),
        cleaning=cleaning(apply, off, language, min_chars, max_chars),
        splits=splitting(split, seed, stratify),
        license=license,
    )
    _bring_in(session, request)


_SPLITS = ["llmos-ctl dataset split reviews@1 --split train=0.9 --split test=0.1 --seed 7"]


@command(app, "split", examples=_SPLITS)
def split_(
    session: Session,
    ref: Ref,
    split: Shares,
    seed: Seed = 0,
    stratify: Stratify = False,
    name: NameOption = "",
) -> None:
    """Make a new version that is split anew; rows of the same content stay together."""
    from llmos.api.storage.v1 import data_pb2

    request = data_pb2.ImportDatasetRequest(
        source=f"dataset:{ref}", name=name, splits=splitting(split, seed, stratify)
    )
    _bring_in(session, request)


def _bring_in(session: Session, request: data_pb2.ImportDatasetRequest) -> None:
    from llmos.api.storage.v1 import data_pb2, data_pb2_grpc

    stub = session.kernel(data_pb2_grpc.DatasetsStub)
    reply = data_pb2.ImportDatasetResponse()
    with bar() as show:
        for reply in stub.ImportDataset(request, timeout=session.limit()):
            if not reply.HasField("dataset"):
                show(reply.stage, reply.done_bytes, reply.total_bytes)
    made = reply.dataset
    ref = f"{made.name}@{made.version}"
    said = f"{ref} was imported before." if reply.existed else f"Imported {ref}: {_about(made)}."
    session.out.say(said, {**as_value(made), "existed": reply.existed})


def _about(dataset: data_pb2.Dataset) -> str:
    left = dataset.report.rows_read - dataset.report.rows_kept
    splits = ", ".join(f"{split.rows:,} {split.name}" for split in dataset.splits)
    parts = [
        f"{dataset.rows:,} rows",
        splits if len(dataset.splits) > 1 else "",
        f"{left:,} left out" if left > 0 else "",
        size(dataset.size_bytes),
    ]
    return ", ".join(part for part in parts if part)


@command(app, "list", watch=True)
def list_(
    session: Session,
    name: Annotated[str, typer.Argument(help="Only this data set.", show_default=False)] = "",
) -> None:
    """List the versions in storage."""
    rows, value = [], []
    for found in _versions(session, name):
        kind = found.DESCRIPTOR.fields_by_name["source_format"].enum_type
        rows.append(
            [
                f"{found.name}@{found.version}",
                short_name(kind, found.source_format),
                f"{found.rows:,}",
                " ".join(f"{s.name}:{s.rows}" for s in found.splits),
                size(found.size_bytes),
                found.license,
                when(found.created_unix_s),
            ]
        )
        value.append(as_value(found))
    columns = ["DATA SET", "FROM", "ROWS", "SPLITS", "SIZE", "LICENSE", "IMPORTED"]
    session.out.rows(columns, rows, value)


def _versions(session: Session, name: str) -> Iterator[data_pb2.Dataset]:
    from llmos.api.storage.v1 import data_pb2, data_pb2_grpc

    stub = session.kernel(data_pb2_grpc.DatasetsStub)
    request = data_pb2.ListDatasetsRequest(name=name, page_size=500)
    while True:
        page = stub.ListDatasets(request, timeout=session.limit(QUICK_S))
        yield from page.datasets
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def _get(session: Session, ref: str) -> data_pb2.Dataset:
    from llmos.api.storage.v1 import data_pb2, data_pb2_grpc

    stub = session.kernel(data_pb2_grpc.DatasetsStub)
    request = data_pb2.GetDatasetRequest(ref=ref)
    return stub.GetDataset(request, timeout=session.limit(QUICK_S)).dataset


@command(app)
def show(session: Session, ref: Ref) -> None:
    """Show columns, splits and lineage of a version."""
    found = _get(session, ref)
    roles = {found.text_column: " (text)", found.label_column: " (label)"}
    pairs = {
        "data set": f"{found.name}@{found.version}",
        "about": _about(found),
        "license": found.license or "not known",
        "source": found.lineage.source,
        "made from": ", ".join(found.lineage.parents),
        "made by": " ".join(filter(None, (found.lineage.step, found.lineage.job))),
        "imported": when(found.created_unix_s),
        "digest": found.digest,
    }
    for column in found.columns:
        shape = f", {' x '.join(map(str, column.shape))}" if column.shape else ""
        pairs[f"column {column.name}"] = f"{column.type}{shape}{roles.get(column.name, '')}"
    for split in found.splits:
        pairs[f"split {split.name}"] = (
            f"{split.rows:,} rows, {size(split.size)}, sha256 {split.sha256}"
        )
    session.out.fields({k: v for k, v in pairs.items() if v}, as_value(found))


@command(app)
def report(session: Session, ref: Ref) -> None:
    """Show what cleaning found: each rule with the numbers of the first rows it concerns."""
    found = _get(session, ref).report
    value = as_value(found)
    pairs = {"rows": f"{found.rows_kept:,} of {found.rows_read:,} kept"}
    for rule, said in zip(found.rules, value["rules"], strict=True):
        rows = ", ".join(map(str, rule.examples)) + (", ..." if rule.rows > 10 else "")
        applied = " (applied)" if said["mode"] == "apply" else ""
        name = said["rule"].replace("_", "-")
        pairs[name] = f"{rule.rows:,} rows{applied}" + (f": row {rows}" if rule.rows else "")
    for bucket in value["lengths"]:
        pairs[f"{bucket['from']:,} to {bucket['to']:,} characters"] = f"{bucket['rows']:,} rows"
    for title, counts in (("language", found.languages), ("label", found.labels)):
        for count in counts[:20]:
            pairs[f"{title} {count.name}"] = f"{count.rows:,} rows"
    session.out.fields(pairs, value)


@command(app)
def delete(
    session: Session,
    ref: VersionRef,
    force: Annotated[
        bool, typer.Option("--force", help="Though data sets or models were made from it.")
    ] = False,
) -> None:
    """Delete a version."""
    from llmos.api.storage.v1 import data_pb2, data_pb2_grpc

    stub = session.kernel(data_pb2_grpc.DatasetsStub)
    request = data_pb2.DeleteDatasetRequest(ref=ref, force=force)
    reply = stub.DeleteDataset(request, timeout=session.limit(QUICK_S))
    session.out.say(f"Deleted {ref}; {size(reply.freed_bytes)} are free again.", as_value(reply))
