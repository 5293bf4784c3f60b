"""What a loaded model has done: counts and times, as the protocols tell them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Duration:
    """How often, and nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Add `count` occasions that took `seconds` in all."""
        self.count += count
        self.ns += max(0, int(seconds * 1e9))


@dataclass
class BatchTimes:
    """Of the runs of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


class Statistics:
    """Counts since the worker started. Any thread may add."""

    NAMES = (
        "success",
        "fail",
        "queue",
        "compute_input",
        "compute_infer",
        "compute_output",
        "cache_hit",
        "cache_miss",
    )

    def __init__(self) -> None:
        """Start at nothing."""
        self._lock = threading.Lock()
        self.durations: Mapping[str, Duration] = {name: Duration() for name in self.NAMES}
        self.batches: dict[int, BatchTimes] = defaultdict(BatchTimes)
        self.inferences = 0
        self.executions = 0
        self.last_ms = 0

    def add(self, name: str, seconds: float, count: int = 1) -> None:
        """Add to one of NAMES."""
        with self._lock:
            self.durations[name].add(seconds, count)

    def arrived(self) -> None:
        """Note that a request is here."""
        self.last_ms = int(time.time() * 1000)

    def ran(self, rows: int, before: float, run: float, after: float) -> None:
        """Add one run of the model on `rows` rows, with the seconds of its parts."""
        with self._lock:
            self.executions += 1
            self.inferences += rows
            times = self.batches[rows]
            times.compute_input.add(before)
            times.compute_infer.add(run)
            times.compute_output.add(after)
