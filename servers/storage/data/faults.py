"""The errors of data sets, and how a file is called in them."""

from __future__ import annotations

from llmos.lib.errors import InvalidArgument
from llmos.servers.storage.names import short


def bad_data(file: str, fault: str, cure: str, *, row: int = 0, line: int = 0) -> InvalidArgument:
    """Return the error for data that cannot be taken; file: relative to the source.

    row: from 1, headers not counted; line: from 1. Never says what the row contains.
    """
    where = short(file, 200)[1:-1]
    if row:
        where += f", row {row}"
    elif line:
        where += f", line {line}"
    return InvalidArgument("BAD_DATA_FILE", f"{where}: {fault}; {cure}.")


def bad_option(sentence: str) -> InvalidArgument:
    """Return the error for an option that cannot be followed."""
    return InvalidArgument("BAD_OPTION", sentence)
