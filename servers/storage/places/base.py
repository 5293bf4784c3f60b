"""The interface of a place, and the errors that all of them raise."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmos.lib.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from llmos.servers.storage.names import short


class Meter(Protocol):
    """What long work reports to; every method raises Cancelled when it is to stop."""

    def say(self, stage: str) -> None:
        """Enter a stage."""

    def expect(self, total: int) -> None:
        """Set the bytes in all."""

    def add(self, count: int) -> None:
        """Count bytes done."""


@dataclass(frozen=True)
class Fetched:
    """What a place brought into a folder of ours.

    path: the model's folder or file. name: derived from the source. origin: for lineage, as exact
    as the place can say. license: a hint. files: names of the version's files in order, where the
    place knows them exactly; else they are chosen as from any folder. digest: that of the version,
    where the place knows it.
    """

    path: Path
    name: str
    origin: str
    license: str = ""
    files: tuple[str, ...] = ()
    digest: str = ""


class Place(ABC):
    """Somewhere that models can be fetched from."""

    @abstractmethod
    def fetch(self, source: str, folder: Path, meter: Meter) -> Fetched:
        """Bring the model that `source` names into `folder`, which may hold part of it already.

        Blocking; for a thread. Raises BAD_SOURCE, NO_SUCH_SOURCE, SOURCE_REFUSED,
        SOURCE_UNREACHABLE, DIGEST_MISMATCH, PICKLE_REFUSED, MISSING_EXTRA, DISK_FULL.
        """


def need(module: str) -> Any:
    """Return an imported module of llmos[storage-places]. Raises MISSING_EXTRA."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise FailedPrecondition(
            "MISSING_EXTRA",
            f"The Python package {exc.name or module} is not installed where llmos-storage runs; "
            "run: pip install 'llmos[storage-places]'",
        ) from exc


def bad_source(source: str, form: str) -> InvalidArgument:
    """Return BAD_SOURCE; `form` shows how it is written."""
    return InvalidArgument("BAD_SOURCE", f"{short(source)} is not a source: write {form}.")


def missing(source: str, why: str) -> NotFound:
    """Return NO_SUCH_SOURCE."""
    return NotFound("NO_SUCH_SOURCE", f"{short(source, 200)[1:-1]}: {why}.")


def denied(source: str, where: str) -> PermissionDenied:
    """Return SOURCE_REFUSED; `where` says where credentials are read from."""
    return PermissionDenied(
        "SOURCE_REFUSED",
        f"{short(source, 200)[1:-1]}: not allowed, or it does not exist; the storage server reads "
        f"credentials from {where}.",
    )


def unreachable(source: str, why: str) -> Unavailable:
    """Return SOURCE_UNREACHABLE."""
    return Unavailable(
        "SOURCE_UNREACHABLE",
        f"{short(source, 200)[1:-1]}: {short(why, 200)[1:-1]}; try again: what has arrived is kept "
        "for a day.",
    )


def mismatch(source: str, name: str, why: str) -> DataLoss:
    """Return DIGEST_MISMATCH."""
    return DataLoss(
        "DIGEST_MISMATCH", f"{short(source, 200)[1:-1]}: {short(name)[1:-1]} {why}; try again."
    )
