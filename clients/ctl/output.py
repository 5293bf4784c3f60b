"""Printers: the same result as a table for people or as JSON for programs."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from llmos.lib.values import as_value as as_value
from llmos.lib.values import short_name as short_name

Value: TypeAlias = Any  # what json.dumps takes


class Output(enum.StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Printer(Protocol):
    """Prints a result on stdout."""

    def rows(self, columns: Sequence[str], rows: Sequence[Sequence[str]], value: Value) -> None:
        """Print a list: `rows` for people, `value` for programs."""

    def fields(self, pairs: Mapping[str, str], value: Value) -> None:
        """Print one thing: `pairs` for people, `value` for programs."""

    def say(self, sentence: str, value: Value) -> None:
        """Print an outcome: `sentence` for people, `value` for programs."""


class TablePrinter:
    """For people: aligned columns, as wide as they need to be."""

    def rows(self, columns: Sequence[str], rows: Sequence[Sequence[str]], value: Value) -> None:
        """Print a table; numbers are aligned to the right."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, column in enumerate(columns):
            cells = [row[index] for row in rows]
            numeric = bool(cells) and all(c[:1].isdigit() or c in ("", "-") for c in cells)
            table.add_column(
                column, justify="right" if numeric else "left", no_wrap=index < len(columns) - 1
            )
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=240)  # a pipe has no width to fit into
        console.print(table)

    def fields(self, pairs: Mapping[str, str], value: Value) -> None:
        """Print one `name  value` line per pair."""
        width = max(map(len, pairs), default=0)
        for name, text in pairs.items():
            print(f"{name:<{width}}  {text}")

    def say(self, sentence: str, value: Value) -> None:
        """Print the sentence."""
        print(sentence)


class JsonPrinter:
    """For programs: one JSON value."""

    def rows(self, columns: Sequence[str], rows: Sequence[Sequence[str]], value: Value) -> None:
        """Print the value."""
        print(json.dumps(value, indent=2, ensure_ascii=False))

    def fields(self, pairs: Mapping[str, str], value: Value) -> None:
        """Print the value."""
        print(json.dumps(value, indent=2, ensure_ascii=False))

    def say(self, sentence: str, value: Value) -> None:
        """Print the value."""
        print(json.dumps(value, indent=2, ensure_ascii=False))


class YamlPrinter:
    """For programs that read YAML, and people who like it."""

    def rows(self, columns: Sequence[str], rows: Sequence[Sequence[str]], value: Value) -> None:
        """Print the value."""
        import yaml

        print(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), end="")

    def fields(self, pairs: Mapping[str, str], value: Value) -> None:
        """Print the value."""
        self.rows((), (), value)

    def say(self, sentence: str, value: Value) -> None:
        """Print the value."""
        self.rows((), (), value)


def printer(output: Output) -> Printer:
    """Return the printer for an output."""
    printers: dict[Output, Printer] = {
        Output.JSON: JsonPrinter(),
        Output.YAML: YamlPrinter(),
        Output.TABLE: TablePrinter(),
    }
    return printers[output]


def size(count: int) -> str:
    """Return bytes for people, e.g. `98.9 MiB`."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"


def duration(seconds: float) -> str:
    """Return seconds for people, e.g. `1h02m`."""
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 48 else f"{hours // 24}d{hours % 24:02d}h"


def when(unix_s: float) -> str:
    """Return a Unix time as local date and time; empty for 0."""
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s)) if unix_s else ""
