"""The cleaning report, as it is gathered and as it is kept."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np

from llmos.servers.storage.data.model import Mode, Report, Rule, RuleReport

_EXAMPLES = 10
_MAX_LABELS = 1000  # in the report
_TOO_MANY = 100_000  # labels: then they are none, and are not counted


class Tally:
    """Counts while rows pass by."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.rows_read = self.rows_kept = 0
        self.languages: Counter[str] = Counter()
        self._labels: Counter[str] | None = Counter()
        self._lengths: Counter[int] = Counter()
        self._rules: dict[Rule, tuple[Mode, int, list[int]]] = {}

    def watch(self, rule: Rule, mode: Mode) -> None:
        """List a rule in the report even if it finds nothing."""
        self._rules.setdefault(rule, (mode, 0, []))

    def found(self, rule: Rule, rows: Any) -> None:
        """Count rows, given by their numbers, for a rule that is watched."""
        mode, count, examples = self._rules[rule]
        examples += [int(row) for row in rows[: _EXAMPLES - len(examples)]]
        self._rules[rule] = (mode, count + len(rows), examples)

    def keep(self, lengths: Any, labels: Any) -> None:
        """Count rows that stay. lengths: characters, an array; labels: (label, rows) pairs.

        Each may be None.
        """
        if lengths is not None:
            buckets = np.ceil(np.log2(lengths + 1.0)).astype(int)
            numbers, rows = np.unique(buckets, return_counts=True)
            self._lengths.update(dict(zip(numbers.tolist(), rows.tolist(), strict=True)))
        if labels is not None and self._labels is not None:
            for label, rows in labels:
                self._labels["" if label is None else str(label)] += rows
            if len(self._labels) > _TOO_MANY:
                self._labels = None

    def report(self) -> Report:
        """Return what was counted."""
        return Report(
            self.rows_read,
            self.rows_kept,
            tuple(
                RuleReport(rule, mode, rows, tuple(examples))
                for rule, (mode, rows, examples) in sorted(self._rules.items())
            ),
            tuple(
                (1 << bucket - 1 if bucket else 0, (1 << bucket) - 1, rows)
                for bucket, rows in sorted(self._lengths.items())
            ),
            tuple(_most(self.languages)),
            tuple(_most(self._labels or Counter())[:_MAX_LABELS]),
        )


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def to_json(report: Report) -> str:
    """Return a report as it is kept."""
    return json.dumps(
        {
            "read": report.rows_read,
            "kept": report.rows_kept,
            "rules": [[r.rule, r.mode, r.rows, r.examples] for r in report.rules],
            "lengths": report.lengths,
            "languages": report.languages,
            "labels": report.labels,
        }
    )


def from_json(text: str) -> Report:
    """Return a report that was kept."""
    found = json.loads(text)
    return Report(
        found["read"],
        found["kept"],
        tuple(RuleReport(Rule(r), Mode(m), n, tuple(e)) for r, m, n, e in found["rules"]),
        tuple((a, b, n) for a, b, n in found["lengths"]),
        tuple((name, n) for name, n in found["languages"]),
        tuple((name, n) for name, n in found["labels"]),
    )
