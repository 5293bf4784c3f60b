"""Training in this process: a data set's files, a spec, and the folder in which it happens."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from llmos.api.optimizer.v1 import jobs_pb2
from llmos.servers.optimizer.train.examples import Splits
from llmos.servers.optimizer.train.fit import Outcome, fit
from llmos.servers.optimizer.train.gate import Gate
from llmos.servers.optimizer.train.setup import Workshop

LINE = {"x": [1.0, 2.0, 3.0, 4.0], "y": [2.0, 4.0, 6.0, 8.0]}
WORDS = "the a one ship sea wind sail night star long far home gold king said went saw to of and"


class Killed(BaseException):
    """Ends a training where a signal would."""


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return lines of words, some likelier after others."""
    random = torch.Generator().manual_seed(seed)
    words = WORDS.split()
    lines = []
    for _ in range(count):
        at = int(torch.randint(len(words), (1,), generator=random))
        line = [words[at]]
        for _ in range(12):
            at = (at * 3 + int(torch.randint(3, (1,), generator=random))) % len(words)
            line.append(words[at])
        lines.append(" ".join(line))
    return lines


def parquet(path: Path, table: dict[str, Any]) -> Path:
    """Write columns as a split's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


class TrainWorld:
    """One job's folder. Train again after a Killed: it goes on."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        spec: Any,
        table: dict[str, Any],
        validation: dict[str, Any] | None = None,
        source: Path | None = None,
        text_column: str = "text",
        label_column: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.work, self.spec = folder, spec
        self.told: list[jobs_pb2.TrainingProgress] = []
        self.stop = threading.Event()
        if source is not None and not (folder / "source").exists():
            (folder / "source").symlink_to(source)
        self.shop = Workshop(kind, spec, folder, ["source@1"])
        self.splits = Splits(
            "data@1",
            parquet(folder / "splits" / "train.parquet", table),
            parquet(folder / "splits" / "validation.parquet", validation) if validation else None,
            text_column,
            label_column,
        )

    def train(self, kill_at: int = 0) -> Outcome:
        """Prepare and train; kill_at: die once so many steps are done."""
        self.shop.prepare(self.splits)

        def tell(now: jobs_pb2.TrainingProgress) -> None:
            self.told.append(now)
            if kill_at and now.step >= kill_at:
                raise Killed

        return fit(self.shop, Gate(self.work, self.stop), tell, 1)

    def weights(self, step: str, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
        """Return what was made."""
        found: dict[str, torch.Tensor] = load_file(self.work / "result" / step / file)
        return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Say whether all bits are the same."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
