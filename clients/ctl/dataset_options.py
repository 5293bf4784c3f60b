"""The options of `llmos-ctl dataset import`, and the messages that they become."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llmos.clients.ctl.session import UINT32, UINT64
from llmos.lib.errors import InvalidArgument

if TYPE_CHECKING:
    from llmos.api.storage.v1 import data_pb2

_CLEANING, _READING, _SPLITTING = "Cleaning", "Reading", "Splitting"


class Format(enum.StrEnum):
    """What a source is."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"
    LINES = "lines"
    PARAGRAPHS = "paragraphs"
    MAIL = "mail"
    IMAGES = "images"
    IDX = "idx"


NameOption = Annotated[str, typer.Option(help="Its name here. [default: from the source]")]
LicenseOption = Annotated[str, typer.Option(help="Licence of the data, e.g. CC-BY-4.0.")]
Shares = Annotated[
    list[str] | None,
    typer.Option(
        help="A split and its share, e.g. train=0.8; once for each.", rich_help_panel=_SPLITTING
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, max=UINT64, help="Another seed is another split.", rich_help_panel=_SPLITTING
    ),
]
Stratify = Annotated[
    bool,
    typer.Option(
        "--stratify", help="Keep the shares within every label.", rich_help_panel=_SPLITTING
    ),
]
Apply = Annotated[
    list[str] | None,
    typer.Option(
        help="Rules to apply: html, empty, exact-duplicate, normalized-duplicate, language, "
        "length, missing-label, unreadable. Others only count.",
        rich_help_panel=_CLEANING,
    ),
]
Off = Annotated[
    list[str] | None, typer.Option(help="Rules not to look at.", rich_help_panel=_CLEANING)
]
Language = Annotated[
    list[str] | None,
    typer.Option(help="Languages to keep, e.g. en; counts them.", rich_help_panel=_CLEANING),
]
MinChars = Annotated[
    int,
    typer.Option(
        min=0, max=UINT32, help="For length: fewest characters.", rich_help_panel=_CLEANING
    ),
]
MaxChars = Annotated[
    int,
    typer.Option(min=0, max=UINT32, help="For length: most characters.", rich_help_panel=_CLEANING),
]
FormatOption = Annotated[
    Format | None,
    typer.Option(help="What it is. [default: by its content]", rich_help_panel=_READING),
]
DelimiterOption = Annotated[
    str, typer.Option(help="CSV: what is between values.", rich_help_panel=_READING)
]
HeaderColumns = Annotated[
    list[str] | None,
    typer.Option(
        help="CSV without a header line: its columns, e.g. label,text.", rich_help_panel=_READING
    ),
]
NoQuotes = Annotated[
    bool,
    typer.Option("--no-quotes", help="CSV: quotation marks are text.", rich_help_panel=_READING),
]
EncodingOption = Annotated[
    str, typer.Option(help="Of text, e.g. latin-1. [default: UTF-8]", rich_help_panel=_READING)
]
Types = Annotated[
    list[str] | None,
    typer.Option(
        help="Type of a column, e.g. zip=string: string, int64, float64, bool.",
        rich_help_panel=_READING,
    ),
]
TextColumn = Annotated[
    str, typer.Option(help="Column with the text. [default: text]", rich_help_panel=_READING)
]
LabelColumn = Annotated[
    str, typer.Option(help="Column with the label. [default: label]", rich_help_panel=_READING)
]
ContentColumns = Annotated[
    list[str] | None,
    typer.Option(
        help="Columns that make rows duplicates. [default: all but label and file]",
        rich_help_panel=_READING,
    ),
]


def words(values: Sequence[str] | None) -> list[str]:
    """Return the words of an option that may be given often, or once with commas."""
    return [word for value in values or () for word in value.split(",") if word]


def _pairs(values: Sequence[str] | None, form: str) -> dict[str, str]:
    found = {}
    for value in words(values):
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise InvalidArgument("BAD_OPTION", f"{value[:60]!r} is not {form}.")
        if name in found:
            raise InvalidArgument("BAD_OPTION", f"{name[:60]!r} is given twice.")
        found[name] = rest
    return found


def reading(
    format: Format | None,
    delimiter: str,
    columns: Sequence[str] | None,
    no_quotes: bool,
    encoding: str,
    types: Sequence[str] | None,
    text_column: str,
    label_column: str,
    content_columns: Sequence[str] | None,
) -> data_pb2.ReadOptions:
    """Return how to read. Raises BAD_OPTION."""
    from llmos.api.storage.v1 import data_pb2

    kind = data_pb2.DATA_FORMAT_UNSPECIFIED
    if format is not None:
        kind = data_pb2.DataFormat.Value(f"DATA_FORMAT_{format.name}")
    return data_pb2.ReadOptions(
        format=kind,
        delimiter="\t" if delimiter in ("\\t", "tab") else delimiter,
        columns=words(columns),
        no_quotes=no_quotes,
        encoding=encoding,
        types=_pairs(types, "COLUMN=TYPE"),
        text_column=text_column,
        label_column=label_column,
        content_columns=words(content_columns),
    )


def cleaning(
    apply: Sequence[str] | None,
    off: Sequence[str] | None,
    languages: Sequence[str] | None,
    min_chars: int,
    max_chars: int,
) -> data_pb2.CleaningOptions:
    """Return how to clean. Raises BAD_OPTION."""
    from llmos.api.storage.v1 import data_pb2

    modes: dict[data_pb2.Rule.ValueType, data_pb2.RuleMode.ValueType] = {}
    if languages:
        modes[data_pb2.RULE_LANGUAGE] = data_pb2.RULE_MODE_REPORT
    if min_chars or max_chars:
        modes[data_pb2.RULE_LENGTH] = data_pb2.RULE_MODE_REPORT
    for given, mode in ((off, data_pb2.RULE_MODE_OFF), (apply, data_pb2.RULE_MODE_APPLY)):
        for word in words(given):
            modes[_rule(word)] = mode
    return data_pb2.CleaningOptions(
        rules=[data_pb2.RuleSetting(rule=rule, mode=mode) for rule, mode in modes.items()],
        languages=words(languages),
        min_chars=min_chars,
        max_chars=max_chars,
    )


def _rule(word: str) -> data_pb2.Rule.ValueType:
    from llmos.api.storage.v1 import data_pb2

    known = [name.removeprefix("RULE_") for name in data_pb2.Rule.keys()[1:]]
    name = word.upper().replace("-", "_")
    if name not in known:
        listed = ", ".join(known).lower().replace("_", "-")
        raise InvalidArgument("BAD_OPTION", f"{word[:60]!r} is not a rule; there are {listed}.")
    return data_pb2.Rule.Value(f"RULE_{name}")


def splitting(shares: Sequence[str] | None, seed: int, stratify: bool) -> data_pb2.SplitOptions:
    """Return how to split. Raises BAD_OPTION."""
    from llmos.api.storage.v1 import data_pb2

    found = []
    for name, share in _pairs(shares, "NAME=SHARE").items():
        try:
            found.append(data_pb2.SplitShare(name=name, share=float(share)))
        except ValueError as exc:
            raise InvalidArgument("BAD_OPTION", f"{share[:60]!r} is not a share.") from exc
    return data_pb2.SplitOptions(shares=found, seed=seed, stratify=stratify)
