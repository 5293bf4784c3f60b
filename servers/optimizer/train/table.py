"""Examples on disk, as memory-mapped arrays of one length: any row in any order, by any process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


class Table:
    """Arrays by name, each with one entry per row; read-only."""

    def __init__(self, folder: Path) -> None:
        """Open what `Writer` has finished."""
        self.arrays: dict[str, npt.NDArray[Any]] = {
            path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))
        }
        self.rows = len(next(iter(self.arrays.values())))

    def take(self, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Return copies of some rows."""
        return {name: array[rows] for name, array in self.arrays.items()}


class Writer:
    """Writes a table of a known number of rows; it is there when `finish` has returned."""

    def __init__(self, folder: Path, rows: int) -> None:
        """Write beside `folder` first."""
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".partial")
        self._partial.mkdir(parents=True, exist_ok=True)
        self._rows = rows
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._at: dict[str, int] = {}

    def add(self, name: str, values: npt.NDArray[Any]) -> None:
        """Append rows to an array, which the first call makes."""
        if name not in self._arrays:
            self._arrays[name] = np.lib.format.open_memmap(
                self._partial / f"{name}.npy",
                mode="w+",
                dtype=values.dtype,
                shape=(self._rows, *values.shape[1:]),
            )
            self._at[name] = 0
        at = self._at[name]
        self._arrays[name][at : at + len(values)] = values
        self._at[name] = at + len(values)

    def finish(self) -> Table:
        """Make it a table."""
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]  # of memmap
        self._arrays.clear()
        self._partial.replace(self._folder)
        return Table(self._folder)


def order(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of the rows in an epoch: a permutation that (seed, epoch) fix."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def write_json(path: Path, value: Any) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)
